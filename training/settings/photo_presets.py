"""`--preset photos`: what photographs ask for that drawings and the papers' benchmarks do not, as defaults of other options.

Every one of them is an option that works without the preset, and what the command line says comes after it. They are for some
hundred to some thousand photographs, and one machine: CLIP is trained at a tenth of the rate, its first blocks more slowly than
its last. It is for a GPU: on a processor a step takes minutes, and `--preset cpu` is for that. `--backbone_factor 0
--crops_per_image 8` freezes CLIP and computes its features once; `--lora_rank 16` adapts it by small matrices, which is what a
small GPU has memory for. Precision is that of the machine, which `--mixed_precision auto` finds.

What makes no sense, and is therefore in no preset: VPL, MVP-SEG and MVP-SEG+'s teacher keep CLIP frozen, which is the method,
so that they have neither learning rates of its layers nor LoRA; their crops are computed once, so that colours are not changed
anew; VPL and CoCu see no mask, by which crops could be balanced; GroupViT, which CoCu trains, reads squares of 224 pixels.
"""

from typing import Any

WATCHED: dict[str, Any] = {"rehearsal_steps": 3, "validation_pictures": 6, "validation_limit": 200}
WINDOWS: dict[str, Any] = {"validation_window": 384, "validation_stride": 256}

PHOTOS: dict[str, dict[str, Any]] = {
    "train_mta_clip": {
        "crop_size": [384, 384], "short_side": 384, "scale": [0.5, 2.0], "colour_jitter": 0.5, "hue_jitter": 0.05,
        "max_class_share": 0.75, "balanced_share": 0.5, "backbone_factor": 0.1, "layer_decay": 0.9, "ema_decay": 0.999,
        "hidden_dim": 128, "num_attention_heads": 8, "pixel_decoder_layers": 3, "pixel_decoder_feedforward_dim": 512,
        "num_prompt_tokens": 8, "num_queries": 50, "decoder_layers": 3, "feedforward_dim": 512, "num_points": 4096,
        "contrastive_temperature": 0.07, "learning_rate": 5e-4, "weight_decay": 0.05, "warmup_steps": 50, "max_grad_norm": 1.0,
        "train_batch_size": 8, "max_train_steps": 2000, "checkpointing_steps": 200, "validation_steps": 200,
        **WATCHED, **WINDOWS,
    },
    "train_vpl": {
        "image_size": 384, "label_size": 96, "crops_per_image": 2, "ema_decay": 0.99, "max_train_steps": 1000,
        **WATCHED, **WINDOWS,
    },
    "train_mvp_seg": {"image_size": 384, "crops_per_image": 2, "ema_decay": 0.99, **WATCHED, **WINDOWS},
    "train_mvp_seg_plus": {"image_size": 384, "crops_per_image": 2, "ema_decay": 0.99, **WATCHED, **WINDOWS},
    "train_cocu": {"image_size": 256, "ema_decay": 0.999, **WATCHED},
}  # fmt: skip
