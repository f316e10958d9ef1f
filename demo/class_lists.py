"""Lists of classes to start from, as a visitor would type them."""

from hf_clipseg import toyscapes
from training.data.presets import ADE20K_CLASSES, CITYSCAPES_CLASSES, VOC_CLASSES

PHOTO_CLASSES = (
    "person, dog, cat, horse, cow, sheep, bird, car|automobile, bus, train, bicycle, motorcycle, boat|ship, airplane, chair, "
    "table, sofa|couch, bed, television|screen, bottle, plant, book, food, building|house, road|street, pavement, wall, floor, "
    "window, door, sky, cloud, tree, grass, mountain, water|sea|river, sand|beach, snow, rock, sign"
)

COCO_THINGS = (
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking "
    "meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, "
    "suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis "
    "racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, "
    "pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell "
    "phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
COCO_STUFF = (
    "banner, blanket, branch, bridge, building, bush, cabinet, cage, cardboard, carpet, ceiling, tile ceiling, cloth, "
    "clothes, clouds, counter, cupboard, curtain, desk, dirt, door, fence, marble floor, floor, stone floor, tile floor, "
    "wood floor, flower, fog, food, fruit, furniture, grass, gravel, ground, hill, house, leaves, light, mat, metal, "
    "mirror, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant, plastic, platform, playing field, railing, "
    "railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky, skyscraper, snow, solid, stairs, stone, straw, "
    "structural, table, tent, textile, towel, tree, vegetable, brick wall, concrete wall, wall, panel wall, stone wall, "
    "tile wall, wood wall, water, waterdrops, blind window, window, wood"
)

CLASS_LISTS = {
    "Toyscapes (30)": ", ".join(toyscapes.CLASS_NAMES),
    "everyday photographs (40)": PHOTO_CLASSES,
    "Pascal VOC (21)": ", ".join(VOC_CLASSES),
    "Cityscapes (19)": ", ".join(CITYSCAPES_CLASSES),
    "ADE20K (150)": ", ".join(ADE20K_CLASSES),
    "COCO-Stuff (171)": f"{COCO_THINGS}, {COCO_STUFF}",
}
"""What the page calls a list -> the text that it puts into the class box."""
