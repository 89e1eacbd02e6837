"""Cross entropy of the supervised tokens, and its variants for supervised fine-tuning.

Shapes: B rows, T tokens, K supervised positions, D hidden.
"""

from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor, nn

from ...data.batch import model_inputs
from ...data.packing import LOSS_WEIGHTS
from ...extras.constants import IGNORE_INDEX
from ...hparams import FinetuningArguments
from ...model.readout import Readout, enable_readout
from ...ops.cross_entropy import PLAIN, Anchor, CrossEntropy, TokenLoss, linear_cross_entropy
from ...ops.head import OutputHead
from ...ops.token_weights import by_entropy, by_probability
from ..objective import Batch, LossSum, MetricSum, Models
from ..reference import make_reference, reference_of
from ..sequences import supervised_positions
from ..stage import StageContext


@dataclass(frozen=True)
class SupervisedObjective:
    """Sum of -log p(next token) over the labels that are not IGNORE_INDEX, made inside the model's forward pass.

    What changes the loss (smoothing, reweighting, an anchor) is for training only: an evaluation measures -log p.
    """

    loss: TokenLoss = PLAIN
    """What training minimizes."""
    anchor_strength: float = 0.0
    """Factor of the divergence from the reference; above 0 it takes one more forward pass."""
    with_accuracy: bool = False
    """Also counts the tokens predicted right, in evaluation only."""

    def __call__(self, models: Models, batch: Batch) -> LossSum:
        is_training = models.policy.training
        positions_K, targets_K = supervised_positions(batch)
        is_weighed = is_training and LOSS_WEIGHTS in batch
        weights_K = batch[LOSS_WEIGHTS].flatten()[positions_K + 1] if is_weighed else None
        inputs = model_inputs(batch)
        loss = self.loss if is_training else replace(PLAIN, counts_hits=self.with_accuracy)
        if is_training and self.anchor_strength:
            loss = replace(loss, anchor=self._anchor(models, inputs, positions_K))
        compute = partial(linear_cross_entropy, targets_K=targets_K, weights_K=weights_K, loss=loss)
        found: CrossEntropy = models.policy(**inputs, use_cache=False, readout=Readout(positions_K, compute))
        metrics: dict[str, MetricSum] = {}
        if found.num_correct is not None:
            metrics["accuracy"] = MetricSum(found.num_correct.float(), positions_K.new_tensor(positions_K.numel()))
        weight = positions_K.new_tensor(positions_K.numel()) if weights_K is None else weights_K.sum()
        return LossSum(found.total, weight, metrics)

    def _anchor(self, models: Models, inputs: Batch, positions_K: Tensor) -> Anchor:
        """Ask the reference what it makes of the same positions."""
        heads: list[OutputHead] = []

        def compute(hidden_KD: Tensor, head: OutputHead) -> Tensor:
            heads.append(head)  # not returned: wrappers copy what a forward pass returns
            return hidden_KD

        with reference_of(models) as reference:
            hidden_KD: Tensor = reference(**inputs, use_cache=False, readout=Readout(positions_K, compute))
        return Anchor(hidden_KD, heads[0], self.anchor_strength)


def supervised_objective(context: StageContext) -> SupervisedObjective:
    """Make the objective for a run."""
    arguments, finetuning = context.arguments, context.arguments.finetuning
    enable_readout(context.model)
    loss = variant_of(finetuning)
    return SupervisedObjective(
        loss=replace(loss, label_smoothing=arguments.training.label_smoothing_factor),
        anchor_strength=finetuning.asft_alpha if finetuning.use_asft_loss else 0.0,
        with_accuracy=finetuning.compute_accuracy,
    )


def supervised_helpers(context: StageContext) -> dict[str, nn.Module]:
    """Make the reference that the anchored loss needs in training."""
    arguments = context.arguments
    needs_reference = arguments.finetuning.use_asft_loss and arguments.finetuning.asft_alpha > 0
    return make_reference(context) if needs_reference and arguments.training.do_train else {}


def variant_of(finetuning: FinetuningArguments) -> TokenLoss:
    """Return the loss that the arguments name."""
    if finetuning.use_eaft_loss:
        return TokenLoss(reweight=partial(by_entropy, exponent=finetuning.eaft_alpha))
    if finetuning.use_dft_loss or finetuning.use_asft_loss:
        return TokenLoss(reweight=by_probability)
    return PLAIN


def objective_for(
    model: nn.Module, *, label_smoothing: float = 0.0, with_accuracy: bool = False
) -> SupervisedObjective:
    """Make the objective for a model that was not loaded by this package, and ready the model for it."""
    enable_readout(model)
    return SupervisedObjective(TokenLoss(label_smoothing=label_smoothing), with_accuracy=with_accuracy)


def count_supervised(batch: Batch) -> Tensor:
    """Count the labels that are predicted, or add up their weights: the first token of a row never is one."""
    is_predicted = batch["labels"][:, 1:] != IGNORE_INDEX
    if LOSS_WEIGHTS in batch:
        return (batch[LOSS_WEIGHTS][:, 1:] * is_predicted).sum()
    return is_predicted.sum()
