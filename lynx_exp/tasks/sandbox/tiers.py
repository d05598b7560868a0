"""The tiers, as the parts that they are made of. What each of them stops is told in the package's docstring."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tier:
    """Fields as in `jail.confine.Plan`."""

    name: str
    jail: str
    program_namespaces: bool
    landlock: str
    seccomp: bool
    limits: bool = True
    drop_user: bool = True
    one_process: bool = False


BUBBLEWRAP = Tier(name="bubblewrap", jail="bubblewrap", program_namespaces=True, landlock="if there", seccomp=True)
NAMESPACES = Tier(name="namespaces", jail="namespaces", program_namespaces=True, landlock="required", seccomp=True)
LANDLOCK = Tier(name="landlock", jail="none", program_namespaces=False, landlock="required", seccomp=True)
UNSAFE = Tier(name="unsafe", jail="none", program_namespaces=False, landlock="none", seccomp=False, one_process=True)

CONFINING = (BUBBLEWRAP, NAMESPACES, LANDLOCK)
"""From the strongest down: the order in which `auto` tries them."""

TO_HAVE_IT = {
    "bubblewrap": "install bubblewrap (bwrap) and allow unprivileged user namespaces",
    "namespaces": "allow unprivileged user namespaces, on Linux 5.13 or newer with Landlock",
    "landlock": "a kernel with Landlock that knows TCP (Linux 6.7 or newer)",
}
