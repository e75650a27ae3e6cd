"""`etc/openclawd.yaml` loads, and shows every key of the schema and no other."""

import re
from pathlib import Path

import yaml

from openclawd.config import load_config
from openclawd.config.reference import all_keys
from openclawd.config.schema import Config

SHIPPED = Path(__file__).parents[2] / "etc" / "openclawd.yaml"


def uncommented() -> str:
    lines = SHIPPED.read_text().splitlines()
    return "\n".join("" if line.startswith("##") else line.removeprefix("#") for line in lines)


def key_paths(value: object, path: str = "") -> set[str]:
    if isinstance(value, list) and value and isinstance(value[0], dict):  # a list of rules
        return {path} | key_paths(value[0], f"{path}.NAME")
    if not isinstance(value, dict) or path in ("aliases", "models.NAME.inference_settings"):
        return {path}
    has_names = path in (
        "models",
        "models.NAME.adapters",
        "prices",
        "tiers",
        "security.users",
        "security.groups",
        "security.roles",
    )
    below = {"NAME": next(iter(value.values()))} if has_names else value
    names = (f"{path}.{name}" if path else name for name in below)
    return {path}.union(*map(key_paths, below.values(), names))


def test_as_shipped_it_sets_nothing():
    assert load_config(SHIPPED).model_dump() == Config().model_dump()


def test_with_every_setting_uncommented_it_loads(tmp_path):
    (tmp_path / "openclawd.yaml").write_text(uncommented())
    config = load_config(tmp_path / "openclawd.yaml")
    assert config.models["smollm2"].preload
    assert config.default_name() == "smollm2"


def test_every_key_is_in_it_and_no_other():
    schema = {info.path for info in all_keys()}
    per_model = "models.NAME.inference_settings."  # the same keys as inference_settings
    per_group = "security.groups.NAME."  # the same keys as those of a user
    wanted = {path for path in schema if not path.startswith((per_model, per_group))}
    shown = key_paths(yaml.safe_load(uncommented()))
    shown = {path for path in shown if not re.search(r"(^|\.NAME)$|" + re.escape(per_group), path)}
    assert shown == wanted


def test_every_setting_is_explained():
    explained = re.compile(r"^## +\S")
    with_the_one_above = re.compile(
        r"^#  smollm2:|^#    alice:|^#      cache_type_v|^#    gpu_second"
    )
    lines = SHIPPED.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"^# *(- )?\w+:", line) and not with_the_one_above.match(line):
            assert explained.match(lines[number - 1]), line


def test_the_defaults_it_shows_are_the_defaults(tmp_path):
    (tmp_path / "openclawd.yaml").write_text(uncommented())
    shown = load_config(tmp_path / "openclawd.yaml")
    examples = {"cpu_cores_per_worker", "gpu_memory_per_model"}
    exclude = {"resource_limits": examples, "logging": {"file"}}
    assert shown.tiers == Config().tiers
    for section in ("resource_limits", "logging"):
        without = exclude[section]
        assert getattr(shown, section).model_dump(exclude=without) == getattr(
            Config(), section
        ).model_dump(exclude=without)
    sampling = shown.inference_settings.model_dump(exclude={"seed", "max_input_tokens"})
    defaults = Config().sampling_for(
        shown.models["smollm2"].model_copy(
            update={"inference_settings": Config().inference_settings}
        )
    )
    assert sampling.pop("max_output_tokens") == 1024
    assert sampling.pop("on_too_long") == "error"
    assert sampling == {name: getattr(defaults, name) for name in sampling}
