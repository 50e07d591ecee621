"""CIFAR-100's 20 superclasses of 5 classes each (Krizhevsky 2009, "Learning multiple layers of features from tiny
images", and https://www.cs.toronto.edu/~kriz/cifar.html), found by the names of the classes.

The names are those of the archive's own `meta` file, which the Hub's data set uses too.
"""

from collections.abc import Sequence

CIFAR100 = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
_SUPERCLASS = {name: group for group, names in CIFAR100.items() for name in names}
_ALIASES = {"cra": "crab"}  # as the Hub's data set long spelled it


def superclasses(label_names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the superclass of each class, if the classes are those of CIFAR-100.

    Args:
        label_names: in any order; capitals count as small letters, and spaces and hyphens as underscores.

    Returns:
        As many names as classes; None unless the classes are exactly the 100. Some of them are not enough: a "bed" and
        a "chair" of other data were never meant as household furniture as opposed to 19 other things.
    """
    plain = [str(name).strip().lower().replace(" ", "_").replace("-", "_") for name in label_names]
    known = [_ALIASES.get(name, name) for name in plain]
    if sorted(known) != sorted(_SUPERCLASS):
        return None
    return tuple(_SUPERCLASS[name] for name in known)
