"""Rules on one cell's files: what is there, what state it is in, and that its descriptions agree with one another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import cast

from lynx_exp.checks.findings import some
from lynx_exp.checks.folder_content import TABLES, Content
from lynx_exp.extensions import VARIABLE, has_policy, policy_source
from lynx_exp.store.cell_writer import FINISHED_FILES, NOT_TIMED, TIMING_FILES
from lynx_exp.store.claims import CLAIM, holder_of, is_held
from lynx_exp.store.done import sizes_and_times
from lynx_exp.store.file_types import Done
from lynx_exp.store.files import STATE
from lynx_exp.store.identity import SCHEMA, UNTOUCHED, USES, cell_ids, code_digest
from lynx_exp.wording import first_line

LEFT_BY_A_KILL = "what a killed write left"
ID_DIGITS = 10
"""Of a cell's id, at the end of its folder's name."""

SAME = tuple(name for name, use in USES.items() if use.in_cell_json)
"""Fields of cell.json that are config.yaml's."""


def check_state(content: Content) -> bool:
    """Whether the cell is finished and of this version, so that its rows can be looked at."""
    held = is_held(content.folder)
    if held:
        content.add("running", None, "nobody at work", f"{holder_of(content.folder) or 'a process'} works on it")
    if not content.finished:
        if not held:
            _unfinished(content)
        return False
    if "cell.json" not in content.values:
        if all(finding.file != "cell.json" for finding in content.findings):
            content.add("readable", "cell.json", "what the cell is", "no such file")
        return False
    if content.info.get("schema") != SCHEMA:
        found = f"{content.info.get('schema')}: read it with the lynx_exp that wrote it, or run the cell again"
        content.add("schema", "cell.json", f"schema {SCHEMA}", found)
        return False
    if content.status and content.status.get("state") != "done":
        content.add("state", "status.json", "done, for there is a DONE", content.status.get("state"))
    for reason in content.status.get("invalid") or ():
        content.add("invalid", "status.json", "nothing that speaks against the cell", reason)
    return True


def _unfinished(content: Content) -> None:
    state = content.status.get("state", "begun, no more")
    error = content.status.get("error")
    if state == "running":
        state = "running, but nobody works on it: lost"
    elif state == "done":
        state = "done in status.json, but no DONE"
    elif isinstance(error, dict):
        kind = error.get("kind") or error.get("class")
        state = f"{state}: {kind}: {first_line(str(error.get('message')))}"
    content.add("state", "DONE", "a finished cell", state)


def check_files(content: Content) -> None:
    """That DONE names what such a cell has, and nothing else lies about."""
    named = content.values.get("DONE", {}).get("files")
    if not isinstance(named, dict):
        return
    lacking = [name for name in expected_files(content) if name not in named]
    if lacking:
        content.add("hash", "DONE", f"the hash of {some(lacking)}", "none")
    if sizes_and_times(cast(Done, content.values["DONE"])) is None:
        content.add("hash", "DONE", "sizes and times of files that agree with their hash", "others")


def check_leftovers(content: Content) -> None:
    if is_held(content.folder):
        return
    named = content.values.get("DONE", {}).get("files")
    known = {*FINISHED_FILES, *TIMING_FILES, *TABLES, "status.json", "DONE"}
    known |= set(named) if isinstance(named, dict) else set()
    if not content.finished:
        known |= {"error.txt"}
    for path in sorted(content.folder.iterdir()):
        if path.name == CLAIM:
            content.add("leftovers", path.name, "no claim, for nobody works on it", f"that of {_claimed(content)}")
        elif path.name == "lanes" and path.is_dir():
            _check_journal(content, finished=content.finished)
        elif path.name not in known and (path.is_file() or path.name.endswith(".tmp")):
            what = LEFT_BY_A_KILL if path.name.endswith(".tmp") else "another one"
            content.add("leftovers", path.name, "files of a cell", what)


def _claimed(content: Content) -> str:
    return f"{holder_of(content.folder) or 'nobody that it names'}, which is gone"


def _check_journal(content: Content, *, finished: bool) -> None:
    names = sorted(path.name for path in (content.folder / "lanes").iterdir())
    if finished:
        content.add("leftovers", "lanes", "no journal, for the cell is done", f"{len(names)} files")
        return
    for name in names:
        if name.endswith(STATE) and f"{name.removesuffix(STATE)}.json" not in names:
            continue  # where a lane under way stood when its run was stopped: the next goes on from there
        if not name.endswith(".json") or name.startswith("."):
            what = "a lane that was damaged on disk" if name.endswith(".corrupt") else LEFT_BY_A_KILL
            content.add("leftovers", f"lanes/{name}", "committed lanes", what)


def expected_files(content: Content) -> list[str]:
    """What DONE must name. Older cells do not name status.json."""
    files = [name for name in FINISHED_FILES if name != "status.json"]
    notes = content.status.get("notes") or ()
    if content.config.get("measure", {}).get("latency") and not any(NOT_TIMED in note for note in notes):
        files += TIMING_FILES
    if content.config.get("fidelity") and not content.is_untouched:
        files.append("fidelity.parquet")
    return files


def _path_state() -> str:
    return f"is {os.environ[VARIABLE]}" if os.environ.get(VARIABLE) else "not set: is it missing?"


def check_identity(content: Content) -> None:
    """The folder bears the id; the id is the hash of what it should be, as far as this version can tell."""
    info = content.info
    cell_id = str(info["cell_id"])
    if not content.folder.resolve().name.endswith(f"-{cell_id[:ID_DIGITS]}"):
        content.add(
            "identity", "cell.json", f"the id that the folder ends in, {content.folder.name[-10:]}", cell_id[:10]
        )
    policy = content.config["policy"]
    if policy["name"] not in UNTOUCHED and not has_policy(policy["name"]):
        hint = f"a policy of this lynx_exp, or of a folder that LYNX_EXP_PATH names ({_path_state()})"
        content.add("identity", "cell.json", hint, f"policy {policy['name']}, which is unknown here")
        return
    if content.provenance.get("code_sha256") != code_digest() or _takes_a_file(policy) or policy_source(policy["name"]):
        return  # another version's ids; or one with a file's content in it, wherever that is
    try:
        expected = cell_ids(
            content.config | {"device": info["device"], "dtype": info["dtype"]},
            model_digest=content.provenance["model"]["digest"],
            data_digests=content.provenance["data_sha256"],
            code=content.provenance["code_sha256"],
        )
    except ValueError:
        return  # fields that this version does not have
    held = dict(info)
    for name, wanted in {"cell_id": expected.cell, "pair_id": expected.pair, "sizes_id": expected.sizes}.items():
        if name in held and held[name] != wanted:
            why = f"{wanted[:10]}, which config.yaml and provenance.json make"
            content.add("identity", "cell.json", f"{name} {why}", str(held[name])[:10])


def _takes_a_file(policy: Mapping[str, object]) -> bool:
    """Whether the id has what a calibration, an alignment or a table of budgets holds."""
    asked = policy.get("weights") == "affine" or "calibrated" in (policy.get("protect"), policy.get("per_layer"))
    return asked or "calibration" in policy


def check_config(content: Content) -> None:
    info, config = content.info, content.config
    acts = config["policy"]["name"] not in UNTOUCHED
    wanted = {name: config[name] for name in SAME} | {
        "policy": config["policy"]["name"],
        "task": config["task"]["name"],
        "mixing": config["task"]["mixing"] if config["task"]["weights"] is not None else None,
        "phases": config["phases"] if acts else "none",
        "layers": config["layers"] if acts else None,
        "match_active": config["policy"].get("match_active") if acts else None,
        "dtype": info.get("dtype") if config["dtype"] == "auto" else config["dtype"],
        "device": info.get("device") if config["device"] == "auto" else config["device"].partition(":")[0],
    }
    _compare(content, "cell.json", wanted, info)
    params = {name: value for name, value in info["policy_params"].items() if not isinstance(value, str)}  # paths
    _compare(content, "cell.json", {name: config["policy"].get(name) for name in params}, params)
    for stream, plan in content.plan.items():
        asked = {f"{stream}.{name}": config[name] for name in ("batch_size", "batching", "tail", "seed")}
        _compare(content, "plan.json", asked, {f"{stream}.{name}": value for name, value in plan.items()})
    ran = {"dtype": info["dtype"], "device": info["device"]}
    _compare(content, "provenance.json", ran, content.provenance.get("model", {}))


def _compare(content: Content, file: str, wanted: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Fields that older cells do not have are not missed."""
    for name, value in wanted.items():
        if name in given and given[name] != value:
            content.add("config", file, f"{name} {value}", given[name])
