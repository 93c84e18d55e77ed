"""The keypoints of a person, in the order in which every clip of the studio has them."""

KEYPOINTS = (
    *("eye_left", "eye_right", "nose", "mouth_left", "mouth_right", "lip_upper", "lip_lower", "chin"),
    *("head_top", "ear_left", "ear_right", "neck", "shoulder_left", "shoulder_right", "hand"),
)
"""Left and right as seen in the picture when the person faces it.

Lips: the middles of their inner edges. head_top: the crown without hair or hat. ears: their middles. neck: the middle
of its base. shoulders: the joints under the cloth. hand: the one that holds something. A keypoint is where it is,
whether or not something hides it; it is NaN where the person has none or it is not known.
"""
