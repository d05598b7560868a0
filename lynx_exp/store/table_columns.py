"""Columns of a cell's tables on disk: name, type, unit and meaning, each declared here and nowhere else.

`lynx_exp.store.tables` makes the files' schemas of them, `analysis.load` its frames, docs/records.md its text.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table, or of a frame that is made from JSON files or computed."""

    name: str
    unit: str
    """Unit of the values; "-" for names and flags."""
    meaning: str
    kind: pa.DataType | None = None
    """Type in the table's file; None: in no table's file."""
    loaded: bool = True
    """`analysis.load` reads it. The others (texts, hashes, what a sandbox said) no number needs, and they would fill
    the memory; `lynx_exp.store.read` reads them, a cell at a time."""
    may_lack: bool = False
    """Older cells, or those of other programs, do not have it."""
    file: str = ""
    """Of a frame that is made from JSON files: the one that has it under this name; empty: it is made of others."""


def _column(
    name: str, kind: pa.DataType, unit: str, meaning: str, *, loaded: bool = True, may_lack: bool = False
) -> Column:
    return Column(name=name, kind=kind, unit=unit, meaning=meaning, loaded=loaded, may_lack=may_lack)


_INT, _FLOAT, _TEXT, _FLAG = pa.int32(), pa.float64(), pa.string(), pa.bool_()
_SUBTASK = _column("subtask", _TEXT, "-", "one lm-eval task of the cell's task")
_LANE = _column("lane", _INT, "-", "virtual decode batch; the cluster of every interval")
_DOCUMENT = _column("doc_id", pa.int64(), "-", "document of the subtask")
_REQUEST = _column("request", pa.int64(), "-", "number of the request in the plan")
_LAYER = _column("layer", _INT, "-", "MoE layer, from 0")
_OF_A_RESPONSE = {"loaded": False, "may_lack": True}

TABLE_COLUMNS: dict[str, tuple[Column, ...]] = {
    "responses": (
        _SUBTASK,
        _column("request", pa.int64(), "-", "number of the request in the plan; every repeat is a request of its own"),
        _DOCUMENT,
        _LANE,
        _column("slot", _INT, "-", "of the lane, that the request ran in", loaded=False),
        _column("prompt_hash", _TEXT, "-", "16 hex digits of the SHA-256 of the prompt's text", loaded=False),
        _column("prompt_tokens", _INT, "tokens", "length of the prompt"),
        _column("new_tokens", _INT, "tokens", "length of the response"),
        _column(
            "entered_step",
            _INT,
            "-",
            "decode step of the lane that is the first to feed one of its tokens; with n token_ids it is live in n - 1 "
            "steps from there on",
            may_lack=True,
        ),
        _column("token_ids", pa.list_(_INT), "-", "of the response", loaded=False, may_lack=True),
        _column("finish_reason", _TEXT, "-",
                "eos, stop (a stop string), length (cut off); scored: a choice, nothing generated; cut: a filler that "
                "its lane did not wait for"),
        _column("response", _TEXT, "-", "its text; of a scored choice the continuation", loaded=False),
        _column("logprob", _FLOAT, "nats", "of a scored choice: sum over the continuation", **_OF_A_RESPONSE),
        _column("greedy", _FLAG, "-", "of a scored choice: whether decoding would have given it", **_OF_A_RESPONSE),
        _column(
            "filler",
            _FLAG,
            "-",
            "whether it only fills a lane behind the lane's own requests: kept, and never scored; another lane may "
            "score the same request",
            **_OF_A_RESPONSE,
        ),
        _column("thought", _TEXT, "-",
                "closed (its end came), cut (the response was over before), none; missing where none was looked for",
                may_lack=True),
        _column("thought_tokens", _INT, "tokens",
                "of the thought, with the marker of its end; the others of new_tokens are the answer", may_lack=True),
    ),
    "steps": (
        _column("subtask", _TEXT, "-",
                "one lm-eval task of the cell's task; of a mix the stream, under the task's name"),
        _LANE,
        _column("step", _INT, "-", "decode step of the lane, from 0"),
        _LAYER,
        _column("live_rows", _INT, "rows", "unfinished rows of the lane in the step, fillers included"),
        _column("scored_rows", _INT, "rows", "of these, those whose responses are scored", may_lack=True),
        _column("active_experts", _INT, "experts", "distinct experts that the layer ran for the lane in the step"),
        _column("changed", _INT, "assignments",
                "of top_k per live row: experts that the router chose and that did not run", may_lack=True),
    ),
    "prefill": (
        _column("subtask", _TEXT, "-", "as in steps; only of cells whose policy acts on prompts"),
        _LANE,
        _LAYER,
        _column("tokens", _INT, "tokens", "of the lane's prompts"),
        _column("changed", _INT, "assignments", "of top_k per token, as in steps"),
    ),
    "samples": (
        _SUBTASK,
        _DOCUMENT,
        _LANE,
        _column("score", _FLOAT, "metric's own", "headline score of the document; missing for a corpus metric"),
        _column("scores", _TEXT, "-", "all scores of the document, as JSON"),
        _column(
            "repeat_scores",
            pa.list_(_FLOAT),
            "metric's own",
            "headline score of each response, where several of a document are scored one by one: score is their mean "
            "(avg@k), and their requests are request, request + 1 ...; missing otherwise",
            may_lack=True,
        ),
        _column("target", _TEXT, "-", "reference text"),
        _column("filtered", _TEXT, "-", "answer behind the filter"),
        _column("request", pa.int64(), "-",
                "number in the plan of the request that was scored; of choices the one chosen, of repeats the first",
                may_lack=True),
        _column("slot", _INT, "-", "as in responses, of that request", **_OF_A_RESPONSE),
        _column("prompt_hash", _TEXT, "-", "as in responses, of that request", **_OF_A_RESPONSE),
        _column("response", _TEXT, "-", "as in responses, of that request", **_OF_A_RESPONSE),
        _column("new_tokens", _INT, "tokens", "length of its response", may_lack=True),
        _column("finish_reason", _TEXT, "-", "why its response ended, as in responses", may_lack=True),
        _column(
            "verdict",
            _TEXT,
            "-",
            "what became of generated code: `passed`, `timeout`, `raised CLASS` ...; `transport: WHY` and "
            "`not started: WHY` are no verdicts, though they score 0; missing for other tasks",
            may_lack=True,
        ),
        _column("sandbox", _TEXT, "-", "where generated code ran: tier and self-test, as JSON", **_OF_A_RESPONSE),
    ),
    "timing": (
        _column(
            "name",
            _TEXT,
            "-",
            "vanilla or policy, timed in turns, step by step; vanilla prefill or policy prefill: a whole lane's",
        ),
        _column("window", _INT, "-", "place of the run, in the order of timing; the cluster of intervals of times"),
        _column("subtask", _TEXT, "-", "as in steps"),
        _column("lane", _INT, "-", "of the run, from which the window was drawn"),
        _column("start_step", _INT, "-", "decode step of that lane that is the window's first"),
        _column("repeat", _INT, "-", "repeat of the window, from 0"),
        _column("step", _INT, "-", "decode step of the window, from 0"),
        _column("live_rows", _INT, "rows", "live in the step"),
        _column("active_experts", _FLOAT, "experts", "distinct experts that ran, mean over layers"),
        _column("context", _FLOAT, "tokens", "positions that a row attends to, mean over rows"),
        _column("ms", _FLOAT, "ms", "duration of the step for the whole batch"),
    ),
    "breakdown": (
        _column("name", _TEXT, "-", "vanilla or policy"),
        _column("repeat", _INT, "-", "repeat of the measurement, from 0"),
        _column("section", _TEXT, "-", "attention, router, policy, experts or rest; they add up to the step"),
        _column("ms", _FLOAT, "ms", "time of the section in a decode step, mean over its steps"),
    ),
    "fidelity": (
        _SUBTASK,
        _REQUEST,
        _DOCUMENT,
        _LANE,
        _column("tokens", _INT, "tokens", "length of vanilla's response (or of the choice)"),
        _column("kl", _FLOAT, "nats", "KL(vanilla || policy) of the next-token distributions, summed over the tokens"),
        _column("agreeing", _INT, "tokens", "tokens where the most likely one is the same"),
        _column("retained", _FLOAT, "tokens",
                "share of the router's top-k mass that runs under the policy, mean over layers, summed over the tokens "
                "that decode steps are fed: all but the last; above 1 each where more experts run", may_lack=True),
        _column("prompt_tokens", _INT, "tokens", "of the prompt, where the policy acts there, otherwise 0",
                may_lack=True),
        _column("prompt_retained", _FLOAT, "tokens", "as retained, summed over these", may_lack=True),
    ),
    "tokens": (
        _SUBTASK,
        _REQUEST,
        _DOCUMENT,
        _LANE,
        _column("step", _INT, "-", "decode step of the lane"),
        _LAYER,
        _column("kl", pa.float32(), "nats",
                "KL(vanilla || policy) of the next-token distribution after the token; the same in every layer"),
        _column("confidence", pa.float32(), "-",
                "variance of the router's normalised probabilities, in vanilla's pass"),
        _column("experts", pa.list_(pa.int16()), "-", "that ran for the token"),
    ),
}  # fmt: skip
"""By the name of the table's file, without its ending."""

TABLE_ROWS = {
    "responses": "a request that is scored, or a lane and a request that filled it behind its own",
    "steps": "a subtask, lane, decode step and layer",
    "prefill": "a subtask, lane and layer of a policy that acts on prompts",
    "samples": "a subtask and document",
    "timing": "a timed decode step",
    "breakdown": "a name, repeat and section of a decode step",
    "fidelity": "a subtask and request, on vanilla's response",
    "tokens": "a subtask, request, token of vanilla's response that is fed, and layer",
}
"""What one row of each file is."""
