"""CLIP-based semantic segmentation on Hugging Face parts.

Importing the package registers every method with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES

from .bulk.picture_stream import segment_many
from .localization.prototypes import VisionPrototypes
from .models.cocu.configuration_cocu import CocuConfig
from .models.cocu.modeling_cocu import CocuForSemanticSegmentation
from .models.mask_clip.configuration_mask_clip import MaskClipConfig
from .models.mask_clip.modeling_mask_clip import MaskClipForSemanticSegmentation
from .models.mta_clip.configuration_mta_clip import MtaClipConfig
from .models.mta_clip.modeling_mta_clip import MtaClipForSemanticSegmentation
from .models.mvp_seg.configuration_mvp_seg import MvpSegConfig
from .models.mvp_seg.modeling_mvp_seg import MvpSegForSemanticSegmentation
from .models.mvp_seg_plus.configuration_mvp_seg_plus import MvpSegPlusConfig
from .models.mvp_seg_plus.modeling_mvp_seg_plus import MvpSegPlusForSemanticSegmentation
from .models.pixel_text_clip.configuration_pixel_text_clip import PixelTextClipConfig
from .models.pixel_text_clip.modeling_pixel_text_clip import PixelTextClipForSemanticSegmentation
from .models.vpl.configuration_vpl import VplConfig
from .models.vpl.modeling_vpl import VplForSemanticSegmentation
from .outputs import SegmentationOutput
from .processing.image_processing_segmentation import SegmentationImageProcessor
from .processing.inference import segment
from .processing.label_rules import LabelRule
from .processing.processing_segmentation import SegmentationProcessor

__version__ = "0.2.0"

METHODS = {
    CocuConfig: CocuForSemanticSegmentation,
    MaskClipConfig: MaskClipForSemanticSegmentation,
    MtaClipConfig: MtaClipForSemanticSegmentation,
    MvpSegConfig: MvpSegForSemanticSegmentation,
    MvpSegPlusConfig: MvpSegPlusForSemanticSegmentation,
    PixelTextClipConfig: PixelTextClipForSemanticSegmentation,
    VplConfig: VplForSemanticSegmentation,
}
"""Every method: its configuration and its model class."""

for config_class, model_class in METHODS.items():
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModel.register(config_class, model_class, exist_ok=True)
    AutoModelForSemanticSegmentation.register(config_class, model_class, exist_ok=True)
    AutoImageProcessor.register(config_class, image_processor_classes={"pil": SegmentationImageProcessor}, exist_ok=True)
    AutoProcessor.register(config_class, SegmentationProcessor, exist_ok=True)
    # `pipeline` works without this line, but logs that the model is unsupported: it looks at names only.
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES[config_class.model_type] = model_class.__name__

__all__ = [
    "METHODS",
    "CocuConfig",
    "CocuForSemanticSegmentation",
    "LabelRule",
    "MaskClipConfig",
    "MaskClipForSemanticSegmentation",
    "MtaClipConfig",
    "MtaClipForSemanticSegmentation",
    "MvpSegConfig",
    "MvpSegForSemanticSegmentation",
    "MvpSegPlusConfig",
    "MvpSegPlusForSemanticSegmentation",
    "PixelTextClipConfig",
    "PixelTextClipForSemanticSegmentation",
    "SegmentationImageProcessor",
    "SegmentationOutput",
    "SegmentationProcessor",
    "VisionPrototypes",
    "VplConfig",
    "VplForSemanticSegmentation",
    "segment",
    "segment_many",
]
