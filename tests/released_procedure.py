"""Training-free segmentation as the authors' code does it, written out once more from papers and code.

It shares nothing with the package but the weights, on purpose: attention as explicit matrices, head by head; windows at full
resolution; every name a channel; softmax, areas, thresholds in the order in which they are published. Slow, and kept simple.
Used by the tests of the protocols and by `python -m benchmarks.ablations.parity`.
"""

import math

import torch
import torch.nn.functional as F

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def positions_of(table: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """`(1 + n * n, width)` -> `(1 + h * w, width)`: bicubic by the factor (cells + 0.1) / n."""
    side = math.isqrt(len(table) - 1)
    if side * side == grid[0] * grid[1]:
        return table
    square = table[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, scale_factor=((grid[0] + 0.1) / side, (grid[1] + 0.1) / side), mode="bicubic")
    assert resized.shape[-2:] == grid
    return torch.cat([table[:1], resized.permute(0, 2, 3, 1).reshape(grid[0] * grid[1], -1)])


def last_block_input(clip, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """Tokens before the last block `(1 + h * w, width)` of one picture `(3, height, width)`, and the grid `(h, w)`."""
    vision, embeddings = clip.vision_model, clip.vision_model.embeddings
    patches = embeddings.patch_embedding(pixels[None])
    grid = tuple(patches.shape[-2:])
    positions = positions_of(embeddings.position_embedding.weight, grid)
    tokens = torch.cat([embeddings.class_embedding[None], patches[0].flatten(1).T]) + positions
    tokens = vision.pre_layrnorm(tokens)
    for block in vision.encoder.layers[:-1]:
        tokens = block(tokens[None], None)[0]
    return tokens, grid


def unit(features: torch.Tensor) -> torch.Tensor:
    return features / features.norm(dim=-1, keepdim=True)


def dense(clip, pixels: torch.Tensor, method: str, dino=None) -> torch.Tensor:
    """`(3, height, width)` -> unit features `(h, w, dim)`; for ProxyCLIP on the grid of `dino`, a transformers `ViTModel`."""
    tokens, grid = last_block_input(clip, pixels)
    last, vision = clip.vision_model.encoder.layers[-1], clip.vision_model
    if method == "proxyclip":
        return by_proxy(clip, tokens, grid, dino_features(dino, pixels))
    normed, attention = last.layer_norm1(tokens), last.self_attn
    queries, keys, values = (
        projection(normed).chunk(attention.num_heads, dim=-1)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    rows = torch.stack(torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij"), -1).reshape(-1, 2)
    rows, window = rows.to(tokens.dtype), tokens.new_zeros(len(tokens), len(tokens))
    window[1:, 1:] = torch.exp(-(torch.cdist(rows, rows) ** 2) / (2 * 5.0**2))
    heads = []
    for query, key, value in zip(queries, keys, values, strict=True):
        scale = query.shape[-1] ** -0.5
        weights = {
            "maskclip": lambda: torch.eye(len(tokens), dtype=tokens.dtype),
            "sclip": lambda: (query @ query.T * scale).softmax(-1) + (key @ key.T * scale).softmax(-1),  # noqa: B023
            "clearclip": lambda: (query @ query.T * scale).softmax(-1),  # noqa: B023
            "naclip": lambda: (key @ key.T * scale + window).softmax(-1),  # noqa: B023
        }[method]()
        heads.append(weights @ value)
    attended = attention.out_proj(torch.cat(heads, -1))
    if method in ("maskclip", "sclip"):
        attended = tokens + attended
        attended = attended + last.mlp(last.layer_norm2(attended))
    features = clip.visual_projection(vision.post_layernorm(attended))[1:]
    return unit(features).reshape(*grid, -1)


def dino_features(dino, pixels: torch.Tensor) -> torch.Tensor:
    """Unit patch features `(h, w, dim)` of DINO's last layer, on the picture normalised with ImageNet's figures."""

    def column(values):
        return pixels.new_tensor(values).view(3, 1, 1)

    rgb = pixels * column(CLIP_STD) + column(CLIP_MEAN)
    inputs = ((rgb - column(IMAGENET_MEAN)) / column(IMAGENET_STD))[None]
    tokens = dino(inputs, interpolate_pos_encoding=True).last_hidden_state[0, 1:]
    patch = dino.config.patch_size
    return unit(tokens).reshape(pixels.shape[1] // patch, pixels.shape[2] // patch, -1)


def by_proxy(clip, tokens: torch.Tensor, grid: tuple[int, int], proxy: torch.Tensor, beta=1.2, gamma=3.0) -> torch.Tensor:
    """CLIP's last block on `tokens` with the similarities of `proxy (h, w, dim)` as attention, on the grid of the proxy."""
    features = proxy.flatten(0, 1)
    similarity = features @ features.T
    scores = (similarity - similarity.mean() * beta) * gamma
    scores[scores < 0] = -torch.inf
    attention = torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)
    block = clip.vision_model.encoder.layers[-1]
    values = block.self_attn.v_proj(block.layer_norm1(tokens))[1:]
    maps = F.interpolate(values.T.reshape(1, -1, *grid), size=proxy.shape[:2], mode="bilinear")
    heads = maps[0].flatten(1).T.chunk(block.self_attn.num_heads, dim=-1)
    mixed = torch.cat([attention @ head for head in heads], dim=-1)
    features = clip.visual_projection(clip.vision_model.post_layernorm(block.self_attn.out_proj(mixed)))
    return unit(features).reshape(*proxy.shape[:2], -1)


def stitched(clip, pixels, texts, method: str, window: int, stride: int, dino=None) -> torch.Tensor:
    """Cosines with every name, averaged over the windows, `(names, height, width)`."""
    _, height, width = pixels.shape
    total, count = pixels.new_zeros(len(texts), height, width), pixels.new_zeros(height, width)
    for row in range(max(height - window + stride - 1, 0) // stride + 1):
        for column in range(max(width - window + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + window, height), min(column * stride + window, width)
            top, left = max(bottom - window, 0), max(right - window, 0)
            maps = (dense(clip, pixels[:, top:bottom, left:right], method, dino) @ texts.T).permute(2, 0, 1)
            total[:, top:bottom, left:right] += F.interpolate(maps[None], size=(bottom - top, right - left), mode="bilinear")[0]
            count[top:bottom, left:right] += 1
    return total / count


def refined(picture: torch.Tensor, maps: torch.Tensor, iterations: int, dilations, softness: float = 0.1) -> torch.Tensor:
    """PAMR of `maps (channels, height, width)` on `picture (3, height, width)`, all neighbours of a pixel at once."""
    _, height, width = maps.shape
    places = [
        ((torch.arange(height) + dy).clamp(0, height - 1)[:, None], (torch.arange(width) + dx).clamp(0, width - 1))
        for dilation in dilations
        for dy in (-dilation, 0, dilation)
        for dx in (-dilation, 0, dilation)
        if (dy, dx) != (0, 0)
    ]
    neighbours = torch.stack([picture[:, rows, columns] for rows, columns in places])
    sigma = torch.cat([neighbours, picture.expand(len(dilations), -1, -1, -1)]).std(0)
    weights = (-((neighbours - picture).abs() / (softness * sigma + 1e-8)).mean(1)).softmax(0)
    for _ in range(iterations):
        maps = torch.stack([
            sum(weight * channel[rows, columns] for weight, (rows, columns) in zip(weights, places, strict=True))
            for channel in maps
        ])  # fmt: skip
    return maps


def labels_of(maps: torch.Tensor, class_ids: torch.Tensor, size: tuple[int, int], protocol, picture=None) -> torch.Tensor:
    """`(names, h, w)` cosines -> class ids `(height, width)`; `picture (3, any, any)` for PAMR."""
    maps = F.interpolate(maps[None], size=size, mode="bilinear")[0]
    if protocol.pamr_iterations:
        picture = F.interpolate(picture[None], size=size, mode="bilinear")[0]
        maps = refined(picture, maps, protocol.pamr_iterations, protocol.pamr_dilations)
    probabilities = (maps * protocol.logit_scale).softmax(0)
    classes = torch.stack([probabilities[class_ids == index].amax(0) for index in range(int(class_ids.max()) + 1)])
    if protocol.area_thd:
        winners = F.one_hot(classes.argmax(0), len(classes))[..., 1:].sum((0, 1))
        classes[1:] *= (winners > protocol.area_thd * winners.sum()).to(classes.dtype)[:, None, None]
    labels = classes.argmax(0)
    labels[classes.amax(0) < protocol.prob_thd] = 0
    return labels


def name_embeddings(clip, tokenizer, class_names, template: str = "a photo of a {}") -> tuple[torch.Tensor, torch.Tensor]:
    """Unit text features `(names, dim)` of all names, and the class of each."""
    texts = [template.format(name) for names in class_names for name in names]
    class_ids = torch.tensor([index for index, names in enumerate(class_names) for _ in names])
    inputs = tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    return unit(clip.get_text_features(inputs).pooler_output), class_ids
