"""Training with less memory for more time."""

from transformers import PreTrainedModel


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Activations of transformer blocks are computed again in the backward pass instead of kept.

    By the name that transformers has for it: the old one warns from the version on that has the new one.
    """
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable()
