"""Configuration of the pixel-text baseline."""

from ..configuration_supervised_clip import SupervisedClipConfig


class PixelTextClipConfig(SupervisedClipConfig):
    r"""
    Configuration of [`PixelTextClipForSemanticSegmentation`]; see [`SupervisedClipConfig`] for the shared fields.

    Args:
        num_prompts (`int`, *optional*, defaults to 1):
            Learned prompts; the best of them counts for each pixel.
        temperature (`float`, *optional*, defaults to 0.07):
            Divides the cosines of pixels and texts.
    """

    model_type = "pixel_text_clip"

    num_prompts: int = 1
    temperature: float = 0.07

    def check(self) -> None:
        super().check()
        if self.num_prompts < 1:
            raise ValueError(f"num_prompts must be at least 1, got {self.num_prompts}: pixels are compared with nothing else.")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}.")
