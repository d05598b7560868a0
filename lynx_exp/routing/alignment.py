"""weights=affine: the output of a layer's experts, where a policy changed which run, is mapped to the mean and
deviation that it would have had (arXiv 2609.09241; its abstract was read, the formula is secondary).

Per layer and dimension, before the residual, with eps = 1e-5:

  y' = (y - mean under the policy) / (deviation under the policy + eps) * vanilla's deviation + vanilla's mean

`lynx-prepare calibrate policy=NAME` measures the four on text, each layer with vanilla's layers before it, for exactly
this policy with these parameters, this model and this corpus, and keeps them in a file that is named by what it is of.
Here, and not in what is known of the paper: only rows that run other experts than their router chose are measured and
mapped, since the others need nothing, so that `no_drop` stays vanilla to the bit; and what is mapped is the weighted
sum of the routed experts, without shared experts, on which no policy has an effect.

L layers with a router, D width of the experts' outputs.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lynx_exp.routing.calibration import AUTO, COMMAND, NotMeasured, typed
from lynx_exp.routing.measured_file import corpus_tag, load_tables, save_tables, the_only_one

if TYPE_CHECKING:
    from lynx_exp.routing.policy import Policy

FOLDER = Path("calibrations")
EPS = 1e-5
TABLES = ("policy_mean", "policy_deviation", "vanilla_mean", "vanilla_deviation")
_FORMAT = 1
_KIND = "alignment"


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """Measured for one policy on one model and corpus."""

    policy: str
    """`policy_digest` of the policy."""
    fingerprint: str
    """Of the routers' weights, and of a sample of their experts'."""
    corpus: str
    """sha256 of the texts."""
    tables: dict[str, Tensor] = field(repr=False)
    """`TABLES`, each `[L, D]` float32; of a layer that the policy never changed, the policy's are vanilla's."""
    provenance: dict[str, str]
    """What it was measured on."""
    _on_device: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def file(self, folder: Path = FOLDER) -> Path:
        tag = corpus_tag(self.provenance)
        return folder / f"{self.policy[:12]}-{self.fingerprint[:12]}-{tag}.aligned.safetensors"

    def save(self, path: Path) -> None:
        """Written in one step; the same tables give the same bytes."""
        about = {name: getattr(self, name) for name in ("policy", "fingerprint", "corpus", "provenance")}
        save_tables(path, _KIND, self.tables, about, version=_FORMAT)

    @classmethod
    def load(cls, path: Path) -> Alignment:
        """ValueError, in one line, for a file that is something else or has been changed."""
        again = "make it again with `lynx-prepare calibrate policy=...`"
        tables, about = load_tables(path, _KIND, TABLES, again, version=_FORMAT)
        return cls(tables=tables, **{name: about[name] for name in ("policy", "fingerprint", "corpus", "provenance")})

    def gain_and_shift(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`[L, D]` each: y' = y * gain + shift; kept, since a CUDA graph may hold the address."""
        if device not in self._on_device:
            mean, deviation, vanilla_mean, vanilla_deviation = (self.tables[name].double() for name in TABLES)
            gain = vanilla_deviation / (deviation + EPS)
            shift = vanilla_mean - mean * gain
            self._on_device[device] = gain.float().to(device), shift.float().to(device)
        return self._on_device[device]


def policy_digest(policy: Policy) -> str:
    """sha256 over a policy's name and parameters; in place of where a calibration is, what the file holds."""
    parts = getattr(policy, "policies", (policy,))
    left_out = ("calibration", "weights", "k2", "protect", "per_layer")
    said = [
        {"name": part.name}
        | {f.name: getattr(part, f.name) for f in fields(part) if f.init and f.name not in left_out}
        | ({} if part.protect is None else {"protect": part.protect})
        | content_of(getattr(part, "calibration", AUTO))
        for part in parts
    ]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def content_of(calibration: str) -> dict[str, str]:
    """Empty for the model's own calibration, which the model's fingerprint stands for."""
    if calibration == AUTO:
        return {}
    path = Path(calibration)
    return {"calibration": hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else calibration}


def files_for(policy: Policy, folder: Path = FOLDER) -> list[Path]:
    """The alignments of this policy with these parameters, of whatever models and sizes of batches. ValueError if there
    is none."""
    found = sorted(folder.glob(f"{policy_digest(policy)[:12]}-*.aligned.safetensors"))
    if not found:
        raise NotMeasured(
            f"{policy.name}: weights=affine: {folder}/ has no alignment for this policy with these parameters (hash "
            f"{policy_digest(policy)[:12]}); {COMMAND} {typed(policy)}` makes one"
        )
    return found


def find_alignment(policy: Policy, fingerprint: str, folder: Path = FOLDER) -> Alignment:
    """The one for this policy, the batches that it is for, and this model. ValueError, naming the hashes, if there is
    none, or the files, if there are several (of other texts) or they are of other batches."""
    files = files_for(policy, folder)
    held = [Alignment.load(path) for path in files]
    wanted = (policy_digest(policy), fingerprint)
    own = [(path, each) for path, each in zip(files, held, strict=True) if (each.policy, each.fingerprint) == wanted]
    found = the_only_one(f"{policy.name}: weights=affine", own, policy.of_batch_size, typed(policy))
    if found is not None:
        return found[1]
    raise ValueError(
        f"{policy.name}: weights=affine: {', '.join(map(str, files))}: made for another model (its routers and experts "
        f"hash to {held[0].fingerprint[:12]}, this model's to {fingerprint[:12]}); {COMMAND} "
        f"{typed(policy)}` for this one"
    )
