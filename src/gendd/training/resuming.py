"""Resume from a checkpoint with another step size: on more or fewer processes, or with other batches."""

from __future__ import annotations

from typing import Any

from gendd.errors import UserError
from gendd.messages import say

# composition of a step, as stored in checkpoints
Layout = dict[str, int]


def convert(checkpoint: dict[str, Any], layout: Layout) -> None:
    """Convert a checkpoint's position in the training to steps of another size.

    Completed epochs are unchanged; within an epoch, training resumes after the images already seen, to
    within one step.

    Args:
        checkpoint: Lightning's checkpoint, with the layout of its steps as ``layout``; changed in place.
        layout: The new layout: ``processes``, ``images`` per step, ``batches`` per step and ``steps`` per
            epoch.

    Raises:
        UserError: an epoch is now a single step, and the checkpoint is from within an epoch.
    """
    before: Layout = checkpoint.get("layout", layout)
    if before == layout:
        return
    say(
        f"going on with steps of {layout['images']:,} images in {layout['processes']} processes, "
        f"{layout['steps']:,} per epoch (before: {before['images']:,} in {before['processes']}, "
        f"{before['steps']:,} per epoch)"
    )
    progress = checkpoint["loops"]["fit_loop"]
    done = checkpoint["global_step"]
    within = not progress["epoch_loop.batch_progress"]["is_last_batch"]
    epochs, steps = divmod(done, before["steps"])
    if not within:
        epochs, steps = (epochs, 0) if steps == 0 else (epochs + 1, 0)
    if within:
        if layout["steps"] == 1:
            raise UserError(
                "--resume: expected the number of processes that the checkpoint within an epoch was written "
                f"by, {before['processes']}, got {layout['processes']}, with which an epoch is a single step."
            )
        steps = min(max(1, steps * before["images"] // layout["images"]), layout["steps"] - 1)
    # steps of the epoch to resume, or of the one just completed
    current = steps if within else layout["steps"]
    total = epochs * layout["steps"] + steps
    batches, all_batches = current * layout["batches"], total * layout["batches"]
    # a checkpoint within an epoch is written before its batch counts as completed
    open_batch = int(within)
    _count(progress["epoch_loop.batch_progress"], batches, all_batches, open_batch)
    _count(progress["epoch_loop.scheduler_progress"], current, total)
    optimizer = progress["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]
    for part in optimizer.values():
        _count(part, current, total)
    progress["epoch_loop.state_dict"]["_batches_that_stepped"] = total - open_batch
    for loader in progress["state_dict"]["combined_loader"]:
        loader["given"] = batches
    checkpoint["global_step"] = total
    for schedule in checkpoint["lr_schedulers"]:
        schedule |= {"last_epoch": total, "_step_count": total + 1}


def _count(progress: dict[str, Any], current: int, total: int, open_batch: int = 0) -> None:
    """Set the counters of one of Lightning's progress trackers."""
    for name, value in (("current", current), ("total", total)):
        for key in progress[name]:
            progress[name][key] = value - (open_batch if key == "completed" else 0)
