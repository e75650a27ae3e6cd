"""`monitoring:`: metrics and health for other programs, and what the daemon warns of itself."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

from openclawd.config import values
from openclawd.config.keys import Section, key


class MonitoringConfig(Section):
    """What other programs can see of the daemon, and what it says by itself."""

    metrics: bool = key(
        default=True,
        meaning="Offer `/metrics` (Prometheus) and `/health` over HTTP on a Unix socket. See"
        " docs/monitoring.md; `openclawd-metrics` offers them on a TCP port.",
        allowed="true or false",
    )
    socket: Annotated[str, AfterValidator(values.absolute)] | None = key(
        None,
        meaning="Where that socket is. It has mode 0660 and the group of the daemon's own socket.",
        allowed="an absolute path",
        default_text="beside the daemon's own socket: `openclawd-metrics.sock`",
    )
    memory_warning: float = key(
        0.9,
        meaning="The used share of the machine's memory, of the service's own limit, or of a GPU's"
        " memory, that is warned of in the log.",
        allowed="a number from 0.1 to 1",
        ge=0.1,
        le=1,
    )
