"""LSUN scenes from a local folder of pictures; nothing is downloaded."""

from ldm.data.imagenet import ImageFolder


class LSUNBedroomsTrain(ImageFolder):
    """Bedrooms to train on; half of them are mirrored."""

    variable, mirrored = "LSUN_BEDROOMS_TRAIN", 0.5


class LSUNBedroomsValidation(ImageFolder):
    """Bedrooms to validate on."""

    variable, keyed = "LSUN_BEDROOMS_VALIDATION", False


class LSUNChurchesTrain(LSUNBedroomsTrain):
    """Churches to train on; half of them are mirrored."""

    variable = "LSUN_CHURCHES_TRAIN"


class LSUNChurchesValidation(LSUNBedroomsValidation):
    """Churches to validate on."""

    variable = "LSUN_CHURCHES_VALIDATION"
