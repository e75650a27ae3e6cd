"""Loading a file: what is accepted, and that an error says file, line, key, found and allowed."""

import json
import math
import os
import shlex

import pytest

from openclawd.config import (
    Config,
    ConfigError,
    config_from_models,
    load_config,
    missing_files,
)
from openclawd.config.source import MAX_FILE_BYTES, NO_TEXT


@pytest.fixture
def load(tmp_path):
    def load(text, name="c.yaml", **options):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path, **options)

    return load


@pytest.fixture
def findings(load, tmp_path):
    """What is wrong with a text, without the folder of the file."""

    def findings(text, name="c.yaml", **options):
        with pytest.raises(ConfigError) as caught:
            load(text, name, **options)
        return str(caught.value).replace(f"{tmp_path}/", "").splitlines()

    return findings


def test_an_empty_file_is_all_defaults(load, tmp_path):
    config = load("# nothing yet\n", state_dir=tmp_path)
    assert config == Config().model_copy(update={"model_paths": [f"{tmp_path}/models"]})


def test_the_documented_sample(load):
    config = load(
        """
models:
  smollm2:
    path: SmolLM2-135M-Instruct.Q4_1.gguf
    backend: auto
    preload: true
    required: false
    workers: 1
    parallel: 8
    context: 2048
    keep_alive: 5m
    pinned: false
    devices: []
    gpu_layers: auto
    threads: auto
    system_prompts: []
    inference_settings: {temperature: 0.2}
    options: {}
default_model: smollm2
aliases: {chat: smollm2}
model_paths: [/var/lib/openclawd/models]
resource_limits: {cpu_cores_per_worker: 2, max_connections: 512, max_requests_per_connection: 256}
inference_settings: {max_input_tokens: 4096, max_output_tokens: 1024, temperature: 0.8,
                     top_p: 0.95, top_k: 40}
logging: {level: info, format: auto}
monitoring: {}
security: {}
caching: {}
"""
    )
    model = config.models["smollm2"]
    assert model.keep_alive_s == 300
    assert model.kv_tokens == 16384
    assert config.sampling_for(model).temperature == 0.2
    assert config.sampling_for(model).top_k == 40
    assert config.max_input_tokens_for(model) == 4096
    assert config.max_output_tokens_for(model) == 1024
    assert config.resource_limits.cpu_cores_per_worker == 2


def test_json_reads_the_same_as_yaml(load):
    data = {
        "models": {"a": {"path": "/a.gguf", "inference_settings": {"min_p": 1e-7}}},
        "aliases": {"b": "a"},
        "resource_limits": {"drain_timeout": 5},
    }
    text = json.dumps(data, indent="\t")
    assert "1e-07" in text
    config = load(text, "c.json")
    assert config.models["a"].inference_settings.min_p == 1e-7
    assert config.resource_limits.drain_timeout_s == 5.0
    assert config.aliases == {"b": "a"}


def test_sections_may_be_empty(load):
    config = load("models:\naliases:\nresource_limits:\nlogging:\nsecurity:\n")
    assert config.models == {}
    assert config.logging.level == "info"


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ("", 300),
        ("preload: true", math.inf),
        ("pinned: true", math.inf),
        ("keep_alive: 90", 90),
        ("keep_alive: 0", 0),
        ("keep_alive: 1h30m, preload: true", 5400),
        ("keep_alive: forever", math.inf),
        ("keep_alive: -1", math.inf),
    ],
)
def test_keep_alive(load, settings, seconds):
    config = load(f"models: {{a: {{path: a.gguf, {settings}}}}}")
    assert config.models["a"].keep_alive_s == seconds


def test_off_need_not_be_quoted(load):
    """YAML reads it as false."""
    for text in ("off", "'off'", "false"):
        assert load(MODEL + f"persist_prefixes: {text}").models["a"].persist_prefixes == "off"


def test_a_model_overrides_the_daemon_and_the_daemon_the_defaults(load):
    config = load(
        "models: {a: {path: a, inference_settings: {top_k: 1, max_output_tokens: 5}}}\n"
        "inference_settings: {top_k: 2, top_p: 0.5, max_input_tokens: 9}\n"
    )
    model = config.models["a"]
    sampling = config.sampling_for(model)
    assert (sampling.top_k, sampling.top_p, sampling.temperature) == (1, 0.5, 0.8)
    assert sampling.seed is None
    assert config.max_output_tokens_for(model) == 5
    assert config.max_input_tokens_for(model) == 9


def test_options_leave_out_what_the_backend_decides(load):
    config = load("models: {a: {path: a, options: {cache_type_k: q8_0}}, b: {path: b}}")
    assert config.models["a"].options.for_backend() == {"cache_type_k": "q8_0"}
    assert config.models["b"].options.for_backend() == {}
    on = load("models: {a: {path: a, options: {flash_attn: true}}}").models["a"]
    assert on.options.for_backend()["flash_attn"] is True


def test_options_of_torch(load, findings):
    text = "models: {a: {path: a, options: {%s}}}"
    options = "device: 'cuda:1', dtype: float16, quantize: off"
    assert load(text % options).models["a"].options.for_backend() == {
        "device": "cuda:1",
        "dtype": "float16",
        "quantize": "off",
    }
    (found,) = findings(text % "device: 'cuda:x'")
    assert "allowed: auto, cpu, cuda, or cuda: with a number" in found


def test_devices_are_text_for_cuda_visible_devices(load):
    config = load("models: {a: {path: a, devices: [0, '1', GPU-0f-3, MIG-7a-b]}}")
    assert config.models["a"].devices == ["0", "1", "GPU-0f-3", "MIG-7a-b"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("models: {a: {path: a}}", "a"),
        ("models: {a: {path: a}, b: {path: b}}", None),
        ("models: {a: {path: a}, b: {path: b}}\ndefault_model: b", "b"),
        ("models: {a: {path: a}, b: {path: b}}\naliases: {c: b}\ndefault_model: c", "b"),
        ("", None),
    ],
)
def test_default_name(load, text, name):
    assert load(text).default_name() == name


MODEL = "models:\n  a:\n    path: a.gguf\n    "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modles: {}", "c.yaml:1: modles: unknown key; did you mean 'models'?"),
        (
            "logging:\n  zzz: 1",
            "c.yaml:2: logging.zzz: unknown key; allowed: level, format, file, syslog",
        ),
        (MODEL + "paralel: 1", "c.yaml:4: models.a.paralel: unknown key; did you mean 'parallel'?"),
        (
            MODEL + "parallel: 0",
            "c.yaml:4: models.a.parallel: found 0; allowed: a whole number from 1 to 256",
        ),
        (
            MODEL + "parallel: yes",
            "c.yaml:4: models.a.parallel: found true; allowed: a whole number from 1 to 256",
        ),
        (
            MODEL + "context: '8'",
            "c.yaml:4: models.a.context: found '8'; allowed: a whole number from 16 to 16777216",
        ),
        (
            MODEL + "preload: 'true'",
            "c.yaml:4: models.a.preload: found 'true'; allowed: true or false",
        ),
        (
            MODEL + "keep_alive: 5x",
            (
                "c.yaml:4: models.a.keep_alive: found '5x'; allowed: a duration such as 5m, "
                "or forever (-1)"
            ),
        ),
        (
            MODEL + "keep_alive: true",
            (
                "c.yaml:4: models.a.keep_alive: found true; allowed: a duration such as 5m, "
                "or forever (-1)"
            ),
        ),
        (
            MODEL + "keep_alive: [1]",
            (
                "c.yaml:4: models.a.keep_alive: found a list; allowed: a duration such as 5m, "
                "or forever (-1)"
            ),
        ),
        (
            MODEL + "gpu_layers: -1",
            (
                "c.yaml:4: models.a.gpu_layers: found -1; allowed: auto, or a whole number "
                "from 0 to 1024"
            ),
        ),
        (
            MODEL + "threads: 0",
            "c.yaml:4: models.a.threads: found 0; allowed: auto, or a whole number from 1 to 1024",
        ),
        (
            MODEL + "devices:\n      - 0\n      - ';x'",
            (
                "c.yaml:6: models.a.devices[1]: found ';x'; allowed: a list of GPU indexes, "
                "GPU-… UUIDs or MIG-… UUIDs"
            ),
        ),
        (
            MODEL + "devices: [GPU-1;rm]",
            (
                "c.yaml:4: models.a.devices[0]: found 'GPU-1;rm'; allowed: a list of GPU indexes, "
                "GPU-… UUIDs or MIG-… UUIDs"
            ),
        ),
        (
            MODEL + "options: {cache_type_k: q3}",
            (
                "c.yaml:4: models.a.options.cache_type_k: found 'q3'; allowed: f32, f16, bf16, "
                "q8_0, q5_1, q5_0, q4_1 or q4_0"
            ),
        ),
        (
            MODEL + "options: {flash_attn: 1}",
            "c.yaml:4: models.a.options.flash_attn: found 1; allowed: auto, true or false",
        ),
        (
            MODEL + "inference_settings: {temperature: .nan}",
            (
                "c.yaml:4: models.a.inference_settings.temperature: found nan; allowed: a number "
                "from 0 to 100"
            ),
        ),
        (
            MODEL + "kv_tokens: 100",
            "c.yaml:4: models.a.kv_tokens: found 100; one whole context of 2048 must fit",
        ),
        (
            MODEL + "prefix_sharing: off\n    kv_tokens: 4096",
            (
                "c.yaml:5: models.a.kv_tokens: found 4096; with prefix_sharing: off it is parallel"
                " times context, 16384: leave it out"
            ),
        ),
        (
            MODEL + "prefix_sharing: off\n    system_prompts: [x]",
            (
                "c.yaml:5: models.a.system_prompts: they are computed once for all, which"
                " prefix_sharing: off forbids"
            ),
        ),
        (
            MODEL + "required: true",
            (
                "c.yaml:4: models.a.required: found true, without preload: true; a model is only "
                "required at the start"
            ),
        ),
        (
            MODEL + "speculation: {method: draft}",
            (
                "c.yaml:4: models.a.speculation: draft_model and method: draft need each other; "
                "set both or neither"
            ),
        ),
        (
            MODEL + "autoscale: {max: 3}",
            "c.yaml:4: models.a.autoscale: min and max need each other; set both or neither",
        ),
        (
            MODEL + "autoscale: {min: 3, max: 2}",
            "c.yaml:4: models.a.autoscale: min is 3, above max, 2",
        ),
        (
            MODEL + "autoscale: {min: 1, max: 2}\n    workers: 3",
            "c.yaml:4: models.a.autoscale: found beside workers: 3; remove one of them",
        ),
        (
            MODEL + "pinned: true\n    keep_alive: 5m",
            (
                "c.yaml:4: models.a.pinned: found true, beside a keep_alive that ends; remove one "
                "of them"
            ),
        ),
        (
            "models: {a: {}}",
            "c.yaml:1: models.a.path: missing; write the path of a GGUF file or of a folder",
        ),
        (
            "models: {a: {path: ''}}",
            "c.yaml:1: models.a.path: found ''; allowed: the path of a GGUF file or of a folder",
        ),
        (
            "models: {a b: {path: x}}",
            (
                "c.yaml:1: models.a b: found the name 'a b'; allowed: letters, digits and . _ : -, "
                "beginning with a letter or digit"
            ),
        ),
        (
            "models: {7: {path: x}}",
            "c.yaml:1: models: the key 7 is not text; write it in quotes",
        ),
        (
            "model_paths: [models]",
            "c.yaml:1: model_paths[0]: found 'models'; allowed: a list of absolute paths",
        ),
        (
            "resource_limits: {max_frame_bytes: 1KiB}",
            (
                "c.yaml:1: resource_limits.max_frame_bytes: found '1KiB'; allowed: a size from "
                "64KiB to 1GiB"
            ),
        ),
        (
            "resource_limits: {max_frame_bytes: 1.5}",
            (
                "c.yaml:1: resource_limits.max_frame_bytes: found 1.5; allowed: a size from "
                "64KiB to 1GiB"
            ),
        ),
        (
            "resource_limits: {max_connections: 4}",
            (
                "c.yaml:1: resource_limits.reserved_admin_connections: found 8; it must be less "
                "than max_connections, which is 4"
            ),
        ),
        (
            "logging: 3",
            "c.yaml:1: logging: found 3; allowed: a map with the keys level, format, file, syslog",
        ),
        (
            "logging: {level: loud}",
            "c.yaml:1: logging.level: found 'loud'; allowed: debug, info, warning or error",
        ),
        (
            "default_model: x",
            "c.yaml:1: default_model: found 'x', which is no model; allowed: none",
        ),
        (
            MODEL.rstrip() + "\naliases: {b: aa}",
            "c.yaml:4: aliases.b: found 'aa', which is no model; allowed: a; did you mean 'a'?",
        ),
        (
            MODEL + "system_prompts: [hello, hello]",
            (
                "c.yaml:4: models.a.system_prompts: found a list; allowed: a list of 32 different "
                "texts at most, none empty"
            ),
        ),
        (
            MODEL + "persist_prefixes: yes",
            "c.yaml:4: models.a.persist_prefixes: found true; allowed: pinned, all or off",
        ),
        (
            MODEL.rstrip() + "\naliases:\n  a: a",
            "c.yaml:5: aliases.a: a model has this name already; choose another",
        ),
    ],
)
def test_a_mistake_names_file_line_key_found_and_allowed(findings, text, message):
    assert findings(text) == [message]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("caching: {exact: true}", "caching"),
    ],
)
def test_what_is_documented_but_not_built_is_refused_as_such(findings, text, key):
    (message,) = findings(text)
    assert f": {key}: " in message
    assert "not built yet" in message


def test_a_section_that_is_not_built_must_be_a_map(findings):
    assert findings("caching: 3") == ["c.yaml:1: caching: found 3; allowed: an empty map"]


def test_all_mistakes_are_listed_in_the_order_of_the_file(findings):
    found = findings("zebra: 1\nmodels:\n  a: {parallel: 0}\nlogging: {level: 1}\n")
    assert [line.split(": ")[1] for line in found] == [
        "zebra",
        "models.a.path",
        "models.a.parallel",
        "logging.level",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "c.yaml:2: a: the key stands twice; the first is in line 1"),
        ("a: [1\n", "c.yaml:2: not valid YAML: while parsing a flow sequence, "),
        ("a: 1\n---\nb: 2\n", "c.yaml:2: not valid YAML: expected a single document"),
        ("- 1\n", "c.yaml:1: the file must hold a map of sections, such as 'models:'"),
        ("a: !!python/object/apply:os.system [id]\n", "c.yaml:1: a: the tag"),
        ("a: !x 1\n", "c.yaml:1: a: the tag !x is not allowed; write a plain value"),
        ("a: !!int x\n", "c.yaml:1: a: 'x' is not a value of type tag:yaml.org,2002:int"),
        (f"a: 0x{'f' * 5000}\n", f"c.yaml:1: a: '0x{'f' * 38}' is too large a number"),
        ('a:\n  - "x\\ud800"\n', f"c.yaml:2: a[0]: 'x\\ud800' {NO_TEXT}"),
        ('"\\e]0;x\\a": 1\n', "c.yaml:1: \\x1b]0;x\\x07: unknown key"),
        ('"ä\\nb": 1\n', "c.yaml:1: ä\\nb: unknown key"),
        ("a: !<%1b%5d> 1\n", "c.yaml:1: a: the tag \\x1b] is not allowed"),
        ('a: 1\n"b\\udc00": 1\n', f"c.yaml:2: the key 'b\\udc00' {NO_TEXT}"),
        ("[a]: 1\n", "c.yaml:1: a key must be text, not a map or a list"),
        (b"\n\xff\n", "c.yaml:2: not UTF-8 text; save the file as UTF-8"),
        ("a: \x00\n", "c.yaml: not valid YAML: "),
        ("x" * (MAX_FILE_BYTES + 1), "c.yaml: larger than 256 KiB"),
        ("[" * 50, "c.yaml:"),
        ("[" * 100_000, "c.yaml: not valid YAML: maximum recursion"),
        ("a: &a [*a]\n", "c.yaml:1: nested too deep"),
        ("a: 2026-01-01\n", "c.yaml:1: a: unknown key"),
    ],
)
def test_a_file_that_is_not_sound(findings, text, message):
    (found,) = findings(text)
    assert found.startswith(message)


def test_deep_but_closed_nesting_is_refused(findings):
    assert findings("a: " + "[" * 40 + "]" * 40) == [
        "c.yaml:1: nested too deep, or too many values"
    ]


def test_aliases_cannot_multiply_without_end(findings):
    lines = ["a0: &a0 [x, x]"] + [
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)
    ]
    (found,) = findings("\n".join(lines))
    assert found.endswith("nested too deep, or too many values")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file or directory"):
        load_config(tmp_path / "none.yaml")


def test_a_folder_or_a_pipe_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_config(tmp_path / "pipe")


def test_workers_from_the_command_line(load, findings):
    text = "models: {a: {path: a, autoscale: {min: 1, max: 4}}, b: {path: b, workers: 3}}"
    assert [model.scale for model in load(text).models.values()] == [(1, 4), (3, 3)]
    assert [model.scale for model in load(text, workers=2).models.values()] == [(2, 2), (2, 2)]
    assert len(findings(text, workers=0)) == 2
    assert "workers" not in str(findings("models: 3", workers=2))


def test_models_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_from_models("a=/x/a.gguf, b.1=rel.gguf")
    assert config.models["a"].path == "/x/a.gguf"
    assert config.models["b.1"].path == str(tmp_path / "rel.gguf")
    assert all(model.preload for model in config.models.values())


@pytest.mark.parametrize(
    ("file", "entry"),
    [
        ("SmolLM2.gguf", "SmolLM2={path}"),
        ("-My Model (1).gguf", "'My-Model-1={path}'"),
        ("_.gguf", "model={path}"),
    ],
)
def test_a_path_without_a_name_gets_one_that_can_be_typed(file, entry, tmp_path):
    path = tmp_path / file
    path.touch()
    with pytest.raises(ConfigError) as caught:
        config_from_models(str(path), state_dir=tmp_path)
    entry = entry.format(path=path)
    assert str(caught.value) == f"--models: {path}: a model needs a name; write {entry}"
    (typed,) = shlex.split(entry)
    (model,) = config_from_models(typed).models.values()
    assert model.path == str(path)


def test_a_path_without_a_name_to_no_file(tmp_path):
    path = tmp_path / "none.gguf"
    with pytest.raises(ConfigError, match=f"there is no file {path}, or it may not be seen"):
        config_from_models(str(path), state_dir=tmp_path)


def test_a_name_with_the_suffix_of_its_file(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gguf").touch()
    with pytest.raises(ConfigError, match=r"a name has no \.gguf; write tiny$"):
        config_from_models("tiny.gguf", state_dir=tmp_path)


@pytest.mark.parametrize("text", ["models:\n\ta:\n", "logging:\n  level: debug\n\tformat: json\n"])
def test_tabs(text, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"cannot start any token; use spaces, not tabs$"):
        load_config(file)


def test_files_that_are_missing(tmp_path):
    there = tmp_path / "there.gguf"
    there.touch()
    file = tmp_path / "c.yaml"
    file.write_text(
        f"model_paths: ['{tmp_path}']\n"
        "models:\n"
        "  a: {path: there.gguf, adapters: {x: none.lora}}\n"
        "  b: {path: none.gguf, speculation: {method: draft, draft_model: there.gguf}}\n"
    )
    assert list(missing_files(load_config(file))) == [
        f"model a: there is no file {tmp_path}/none.lora",
        f"model b: there is no file {tmp_path}/none.gguf",
    ]


def test_a_bare_name_is_a_file_in_the_models_folder(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny.gguf").touch()
    config = config_from_models("tiny", state_dir=tmp_path)
    assert config.models["tiny"].path == str(tmp_path / "models" / "tiny.gguf")
    assert config.model_paths == [str(tmp_path / "models")]
    with pytest.raises(ConfigError) as caught:
        config_from_models("tinny", state_dir=tmp_path)
    assert str(caught.value) == (
        f"--models: tinny: no file tinny.gguf and no model folder tinny in {tmp_path}/models "
        "(there: tiny); write tinny=PATH; did you mean 'tiny'?"
    )


def test_a_file_s_own_name_is_shown_without_control_characters(load):
    with pytest.raises(ConfigError) as caught:
        load("x: 1\n", "c\x1b\n.yaml")
    assert "c\\x1b\\n.yaml:1: x: unknown key" in str(caught.value)
    with pytest.raises(ConfigError, match="is not UTF-8 text; give it another one") as caught:
        load("", "c\udcff.yaml")
    assert "c\\udcff.yaml: " in str(caught.value)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ("a=/x,a=/y", "--models: a: the name stands twice"),
        ("a=/x\udcff", "--models: a: it is not UTF-8 text; give the file another name"),
        ("a\udcff=/x", "--models: a\\udcff: it is not UTF-8 text; give the file another name"),
        ("a=", "--models: a: there is no path after '='; write NAME=PATH"),
        ("", "--models: a name is missing; write NAME=PATH"),
        ("a=/x,,", "--models: a name is missing"),
        ("a b=/x", "--models: models.a b: found the name 'a b'"),
    ],
)
def test_mistakes_in_models(models, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        config_from_models(models, state_dir=tmp_path)
    assert str(caught.value).startswith(message)
