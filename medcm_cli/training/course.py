"""How long a fit is trained, and how."""

from dataclasses import dataclass


def checkpoint_labels(epochs: int, every: int) -> dict[int, int]:
    """Epoch -> label of the checkpoints: epoch 1, labelled 0, every ``every``-th and the last
    (docs/methods.md, "Protocol of the simulation study"); without any epoch, the beginning."""
    if not epochs:
        return {0: 0}
    return {1: 0} | {epoch: epoch for epoch in (*range(every, epochs, every), epochs) if epoch > 1}


@dataclass(frozen=True)
class Course:
    """How long a fit is trained and how: ``epochs`` passes over its subjects, with a checkpoint every
    ``checkpoint_every`` of them and after the last.

    A pass is one step, or, where a fit has more than ``batch_subjects`` subjects, one step for each of the
    minibatches of at most so many into which it is cut, in a new random order in every epoch. What all
    subjects share takes a step with each minibatch, along a gradient whose expectation is that of the whole;
    what a subject has for itself takes one step an epoch, along its own gradient.

    ``redraws``: how often an initialisation is drawn again whose first loss or gradient is not finite, or
    beyond any fit's (``Evaluation.sound``). ``graph``: an epoch is one CUDA graph, where it can be.

    ``log``: parameters above 0 are trained as logarithms (``Scales``). ``stop``: a fit ends where it has
    converged (``Watch``), at the mean of its last values where its objective has noise; ``brief``: early,
    since it is polished afterwards. ``near``: how near it begins to its end, 0 anywhere, 1 where the data
    say, 2 at the optimum of another objective.
    """

    epochs: int
    checkpoint_every: int
    batch_subjects: int | None = None
    redraws: int = 20
    graph: bool = True
    log: bool = False
    stop: bool = False
    brief: bool = False
    near: int = 0

    @property
    def labels(self) -> dict[int, int]:
        """See ``checkpoint_labels``."""
        return checkpoint_labels(self.epochs, self.checkpoint_every)
