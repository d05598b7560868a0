"""`lynx-exp` under torchrun: the first rank runs the program, the others make the same calls of its engine.

Configs, plans, the store, scores, trackers and the screen are the first rank's alone. What the others are told is
which config to load and which method of the engine to call; what they compute is dropped. Importing this is light.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from inspect import ismethod
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from lynx_exp.config import Config
    from lynx_exp.engine import LaneEngine
    from lynx_exp.run.vanilla_references import References

LOCAL = ("act", "bind", "encode", "job")
"""Methods of the engine that run no layer."""

SCREEN = ("on_step", "on_note")
"""Arguments that are the first rank's own."""

WAIT = timedelta(days=7)
"""For the next call: the first rank may be scoring."""

_group: ProcessGroup | None = None


Message = tuple[str, tuple[Any, ...], dict[str, Any]]
"""A method of the engine, or `get` of the engines, and its arguments."""


class Engines(Protocol):
    """Gives the engine of a config; the one that was used last is kept."""

    references: References

    def get(self, config: Config) -> LaneEngine: ...


def world_size() -> int:
    """Processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def is_first_rank() -> bool:
    return world_size() == 1 or os.environ["RANK"] == "0"


def announce_calls(engines: Engines) -> Engines:
    """`engines`, whose use every rank now follows."""
    return cast(Engines, _AnnouncingEngines(engines)) if world_size() > 1 else engines


def follow(engines: Engines) -> None:
    """What all but the first rank do until it dismisses them. A ValueError is the first rank's to report; any other
    exception ends this process, and with it torchrun ends them all."""
    engine: LaneEngine | None = None
    while (message := _broadcast(None)) is not None:
        name, args, kwargs = message
        try:
            if name == "get":
                engine = None  # free the old one first
                engine = engines.get(*args)
                continue
            made = getattr(engine, name)(*args, **kwargs)
            if isinstance(made, Iterator):
                for _ in made:
                    pass
        except ValueError:  # a check, which comes before any layer runs and fails on every rank
            continue


def dismiss() -> None:
    """Let the other ranks end. Nothing without torchrun, and where a call was left half done: they cannot hear it."""
    if world_size() > 1 and is_first_rank() and _AnnouncingEngine.running is None:
        _broadcast(None)


class _AnnouncingEngines:
    def __init__(self, engines: Engines) -> None:
        self._engines = engines

    @property
    def references(self) -> References:
        return self._engines.references

    def get(self, config: Config) -> LaneEngine:
        if config.model.parallel is None:
            raise ValueError(
                f"model.parallel=null: torchrun started {world_size()} processes; give model.parallel=tp or ep, "
                "or start lynx-exp without it"
            )
        _AnnouncingEngine.announce("get", (config,), {})
        return cast("LaneEngine", _AnnouncingEngine(self._engines.get(config)))


class _AnnouncingEngine:
    """The first rank's engine: each call of a method that runs the model is announced."""

    running: str | None = None
    """The call that the other ranks are in, of all engines of the process."""

    def __init__(self, engine: LaneEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        value = getattr(self._engine, name)
        if not ismethod(value) or name in LOCAL:
            return value

        def call(*args: object, **kwargs: object) -> object:
            kwargs = {key: list(given) if isinstance(given, Iterator) else given for key, given in kwargs.items()}
            self.announce(name, args, {key: given for key, given in kwargs.items() if key not in SCREEN})
            _AnnouncingEngine.running = name
            with _a_check_ends_it():
                made = value(*args, **kwargs)
            if isinstance(made, Iterator):
                return self._each(made)
            _AnnouncingEngine.running = None
            return made

        return call

    @staticmethod
    def announce(name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """RuntimeError if an earlier call was left half done: the other ranks are still in it."""
        if _AnnouncingEngine.running is not None:
            raise RuntimeError(
                f"the other ranks are still in {_AnnouncingEngine.running}; run the same command to continue"
            )
        _broadcast((name, args, kwargs))

    @staticmethod
    def _each(made: Iterator[object]) -> Iterator[object]:
        with _a_check_ends_it():
            yield from made
        _AnnouncingEngine.running = None


@contextmanager
def _a_check_ends_it() -> Iterator[None]:
    """A ValueError leaves no rank in the call; after anything else they may be out of step."""
    try:
        yield
    except ValueError:
        _AnnouncingEngine.running = None
        raise


def _broadcast(message: Message | None) -> Message | None:
    """The first rank's message, on every rank."""
    import torch.distributed as dist

    box = [message]
    dist.broadcast_object_list(box, src=0, group=_meet())
    return box[0]


def _meet() -> ProcessGroup:
    """A group of all ranks for messages, apart from the model's own."""
    global _group
    if _group is None:
        import torch
        import torch.distributed as dist

        if not dist.is_initialized():
            device = None
            if torch.cuda.is_available():
                device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
                torch.cuda.set_device(device)
            dist.init_process_group("gloo" if device is None else "nccl", device_id=device, timeout=timedelta(hours=2))
            atexit.register(dist.destroy_process_group)
        _group = dist.new_group(backend="gloo", timeout=WAIT)
    return _group
