"""A plan as text."""

from collections.abc import Iterator

from ...hparams.config import write_value
from .figures import Plan, Suggestion


GIB, MIB = 2**30, 2**20
TITLES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations",
    "logits": "logits",
    "copies": "rounded copies of trained weights",
    "work": "work of the backward pass",
    "update": "work of the update",
    "helpers": "reference and reward models",
    "generation": "answers being written",
    "process": "the process itself",
    "heap": "holes in the heap",
    "mapped": "pages of the weights' file",
}
PHASES = {"backward": "the backward pass", "update": "the update", "generation": "writing answers"}


def show_plan(plan: Plan) -> str:
    """Return the text."""
    return "\n".join(_lines(plan)) + "\n"


def _lines(plan: Plan) -> Iterator[str]:
    model, data, memory = plan.model, plan.data, plan.memory
    quantized = f" on {model.quantization} bits" if model.quantization else ""
    yield f"Model      {model.name}: {model.parameters:,} parameters"
    yield (
        f"Trained    {model.trained:,} ({model.trained_share:.3%}) by {model.method}{quantized}, "
        f"{model.trained_dtype} weights, {model.compute_dtype} products, {model.optimizer}"
    )
    yield from _data_lines(plan)
    yield f"Memory     on {plan.device.name} ({plan.device.kind}), checkpointing {_checkpointing(plan)}"
    for name, size in memory.parts.items():
        if size:
            yield f"    {TITLES[name]:<36}{amount(size):>12}"
    yield f"    {'peak, in ' + PHASES[memory.phase]:<36}{amount(memory.peak):>12}"
    yield f"    {'free':<36}{amount(memory.free):>12}   (a run should count on {amount(memory.usable)})"
    yield from _time_lines(plan)
    yield f"Verdict    {'it fits' if plan.fits else 'it does not fit'}"
    for suggestion in plan.suggestions:
        yield f"    {_suggestion(suggestion)}"
    for note in plan.notes:
        yield f"Note       {note}"
    if data.is_assumed and not plan.notes:
        yield "Note       Full rows are assumed."


def _data_lines(plan: Plan) -> Iterator[str]:
    data = plan.data
    if data.num_rows is not None:
        yield (
            f"Rows       {data.num_rows:,} with {data.tokens_per_epoch:,} tokens; {data.num_steps:,} steps "
            f"({data.steps_per_epoch:,} an epoch, {data.num_epochs:g} epochs)"
        )
    yield (
        f"Batches    {data.batch_size} rows x {data.gradient_accumulation_steps} x {data.num_devices} devices; "
        f"{data.largest_batch_tokens:,} tokens in the largest, {data.mean_batch_tokens:,.0f} on average"
    )


def _time_lines(plan: Plan) -> Iterator[str]:
    probe = plan.probe
    if probe is None:
        return
    total = "" if probe.total_seconds is None else f"; {duration(probe.total_seconds)} for all steps"
    yield (
        f"Time       {probe.seconds_per_step:.2f} s for a step, {probe.tokens_per_second:,.0f} tokens a second{total}"
    )
    if probe.peak is not None:
        yield f"    {'measured peak of that step':<36}{amount(probe.peak):>12}"


def _checkpointing(plan: Plan) -> str:
    memory = plan.memory
    reason = {"asked": "as asked", "fits": "it fits without", "needed": "memory needs it"}
    return f"{memory.checkpointing} ({reason[memory.checkpointing_reason]})"


def _suggestion(suggestion: Suggestion) -> str:
    changes = " ".join(f"{name}={write_value(value)}" for name, value in suggestion.changes.items())
    verdict = "fits" if suggestion.fits else "does not fit yet"
    return f"{changes}: {amount(suggestion.peak)}, {amount(suggestion.saved)} less, {verdict} ({suggestion.why})"


def amount(size: int) -> str:
    """Return bytes in a unit that suits them."""
    return f"{size / GIB:,.2f} GiB" if size >= GIB else f"{size / MIB:,.0f} MiB"


def duration(seconds: float) -> str:
    """Return a time in the two units that suit it."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
