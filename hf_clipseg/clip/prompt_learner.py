"""Learnable prompts: context tokens in front of class names, read by a frozen CLIP text encoder.

Paper: "Learning to Prompt for Vision-Language Models" (CoOp), Zhou et al. 2022, arXiv 2109.01134; one context is shared by all
classes, and the name comes last. A sentence is `[BOS] context_1 .. context_m name [EOS]`.
Deviations, both exact because the text encoder is causal and is read at the end-of-text token: names are cut behind the
longest one, and all names share one copy of `[BOS] context`, which they follow as parallel branches of one sequence. With 16
context tokens and short names that takes a fifth of the tokens that separate sentences take.

transformers' `CLIPTextModel.forward` takes token ids only, so its steps are replayed here on embeddings:
token and position embeddings, causal blocks, final layer norm, the end-of-text position, projection. The attention mask of the
branches needs the `eager` or `sdpa` attention implementation.
"""

import torch
from torch import nn

from .clip_backbone import ClipBackbone
from .text_bank import TextCache, average_templates

INITIAL_STANDARD_DEVIATION = 0.02
NAMES_PER_SEQUENCE = 64
"""Names behind one copy of a context: attention costs the square of it, the shared context is recomputed for every group."""

OLD_EOS_TOKEN_ID = 2
"""`eos_token_id` of CLIP configurations from before transformers 4.31, which did not name the token in use."""


class PromptLearner(nn.Module):
    """`num_contexts` prompts of `num_tokens` learnable tokens, each shared by all classes.

    Args:
        num_contexts: how many prompts.
        num_tokens: learnable tokens in each.
        width: width of the text encoder (`text_config.hidden_size`).
        normalise: whether embeddings have unit length; otherwise they are as the text projection leaves them.

    The owning model initialises `contexts (num_contexts, num_tokens, width)` in its `_init_weights`, by
    `INITIAL_STANDARD_DEVIATION`; `start_from_words` sets them to real words instead.
    """

    def __init__(self, num_contexts: int, num_tokens: int, width: int, normalise: bool = True):
        super().__init__()
        self.normalise = normalise
        if num_contexts < 1 or num_tokens < 1:
            raise ValueError(f"num_contexts and num_tokens must be at least 1, got {num_contexts} and {num_tokens}.")
        self.contexts = nn.Parameter(torch.empty(num_contexts, num_tokens, width))

    @torch.no_grad()
    def start_from_words(self, clip: ClipBackbone, input_ids: torch.Tensor) -> None:
        """Set the last tokens of every context, those next to the class name, to the embeddings of real words.

        Args:
            clip: backbone whose vocabulary the ids belong to.
            input_ids: `(num_contexts, words)` with at most `num_tokens` words, without the start and end tokens.
        """
        num_contexts, num_tokens, _ = self.contexts.shape
        if input_ids.dim() != 2 or len(input_ids) != num_contexts or not 1 <= input_ids.shape[1] <= num_tokens:
            raise ValueError(
                f"input_ids must be (contexts, words) = ({num_contexts}, 1 to {num_tokens}), got {tuple(input_ids.shape)}. "
                "Leave out the start and end tokens, and give every context the same number of tokens."
            )
        self.contexts[:, -input_ids.shape[1] :] = clip.text_model.embeddings.token_embedding(input_ids)

    def encode_names(self, clip: ClipBackbone, input_ids: torch.Tensor, name_ids: torch.Tensor) -> torch.Tensor:
        """`forward`, averaged over the prompts of each name: `(num_contexts, names, dim)`, L2-normalised.

        Args:
            name_ids: `(prompts,)`, the name of each prompt; see `text_bank.average_templates`.
        """
        embeds = self(clip, input_ids)
        if self.normalise:
            return torch.stack([average_templates(of_context, name_ids) for of_context in embeds])
        counts = torch.bincount(name_ids).to(embeds.dtype)[:, None]
        return embeds.new_zeros(len(embeds), len(counts), embeds.shape[-1]).index_add(1, name_ids, embeds) / counts

    def encode_names_once(
        self, cache: TextCache, clip: ClipBackbone, input_ids: torch.Tensor, name_ids: torch.Tensor
    ) -> torch.Tensor:
        """`encode_names` without gradients, computed again only where names, text encoder or contexts have changed."""
        weights = [*clip.text_weights(), self.contexts]
        return cache.get_or_compute(
            lambda: self.encode_names(clip, input_ids, name_ids),
            weights,
            input_ids,
            name_ids,
            computation=f"prompt_learner {self.normalise} {clip.config.text_config.to_json_string()}",
        )

    def forward(self, clip: ClipBackbone, input_ids: torch.Tensor) -> torch.Tensor:
        """Embedding of every prompt behind every context.

        Args:
            clip: the backbone, with its text encoder.
            input_ids: `(prompts, length)`, each `[BOS] words [EOS]` and padding, from the processor.

        Returns:
            `(num_contexts, prompts, dim)`, L2-normalised. Gradients reach `contexts`, and `clip` where it is not frozen.

        Raises:
            ValueError: no text encoder, or context and words together are longer than the text encoder reads.
        """
        return encode_with_contexts(clip, self.contexts, input_ids, self.normalise)


def encode_with_contexts(
    clip: ClipBackbone, contexts: torch.Tensor, input_ids: torch.Tensor, normalise: bool = True
) -> torch.Tensor:
    """`PromptLearner.forward` for any `contexts (contexts, tokens, width)`."""
    if clip.text_model is None:
        raise ValueError("Prompts need the text encoder, and this checkpoint was saved without it. Load the full checkpoint.")
    text_model, num_tokens = clip.text_model, contexts.shape[1]
    ends = end_of_text(input_ids, text_model.eos_token_id)
    length = int(ends.max()) + 1
    check_length(length, num_tokens, text_model.config.max_position_embeddings)
    words = text_model.embeddings.token_embedding(input_ids[:, :length])  # (prompts, length, width)

    groups = -(-len(words) // NAMES_PER_SEQUENCE)
    branches = -(-len(words) // groups)  # names in each group
    sequences = join_branches(contexts.to(words.dtype), words, groups, branches)
    mask, position_ids = branch_mask_and_positions(1 + num_tokens, branches, length - 1, sequences)
    hidden_states = sequences.flatten(0, 1) + text_model.embeddings.position_embedding(position_ids)
    hidden_states = text_model.encoder(inputs_embeds=hidden_states, attention_mask=mask).last_hidden_state

    branch_states = hidden_states[:, 1 + num_tokens :].reshape(len(contexts), groups * branches, length - 1, -1)
    pooled = branch_states[:, torch.arange(len(words), device=ends.device), ends - 1]  # (contexts, prompts, width)
    embeds = clip.text_projection(text_model.final_layer_norm(pooled))
    return nn.functional.normalize(embeds, dim=-1) if normalise else embeds


def join_branches(contexts: torch.Tensor, words: torch.Tensor, groups: int, branches: int) -> torch.Tensor:
    """Start token and context once, then the names of a group one after the other.

    Args:
        contexts: `(contexts, tokens, width)`.
        words: `(prompts, length, width)`, start token first; the last group is filled up with zeros.

    Returns:
        `(contexts, groups, 1 + tokens + branches * (length - 1), width)`.
    """
    names = nn.functional.pad(words[:, 1:], (0, 0, 0, 0, 0, groups * branches - len(words)))
    shape = len(contexts), groups, -1, -1
    start, names = words[:1, :1].expand(shape), names.reshape(1, groups, -1, words.shape[-1]).expand(shape)
    return torch.cat([start, contexts[:, None].expand(shape), names], dim=2)


def branch_mask_and_positions(trunk: int, branches: int, length: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A token sees the trunk and its own branch, up to itself; every branch starts at the position behind the trunk.

    Args:
        trunk: tokens that all branches share.
        branches: how many follow it.
        length: tokens of each.
        like: decides dtype and device.

    Returns:
        Additive attention mask `(1, 1, total, total)` and position ids `(1, total)`, total = trunk + branches * length.
    """
    device = like.device
    in_branch = torch.arange(length, device=device).repeat(branches)
    positions = torch.cat([torch.arange(trunk, device=device), trunk + in_branch])
    branch = torch.cat(
        [torch.full((trunk,), -1, device=device), torch.arange(branches, device=device).repeat_interleave(length)]
    )
    visible = (branch == -1) | (branch == branch[:, None])
    visible &= positions <= positions[:, None]
    mask = torch.zeros(visible.shape, dtype=like.dtype, device=device).masked_fill(~visible, torch.finfo(like.dtype).min)
    return mask[None, None], positions[None]


def end_of_text(input_ids: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """Position `(prompts,)` that CLIP reads its sentence embedding from, by the rule of transformers' `CLIPTextModel`."""
    if eos_token_id == OLD_EOS_TOKEN_ID:  # the end token is the largest id of the vocabulary
        return input_ids.argmax(dim=-1)
    return (input_ids == eos_token_id).int().argmax(dim=-1)  # the first one: padding may use the same id


def check_length(length: int, num_tokens: int, limit: int) -> None:
    """Refuse sentences that have no position embedding.

    Raises:
        ValueError: `length` tokens of words, start and end, and `num_tokens` of context are more than `limit`.
    """
    if length + num_tokens > limit:
        raise ValueError(
            f"A class prompt has {length} tokens with its start and end, and {num_tokens} context tokens go in front of its "
            f"words: together more than the {limit} that the text encoder reads. Shorten the name, or use fewer context tokens."
        )
