"""Which part of a body each joint is, by its name and its place in the tree.

The names of Mixamo, CMU, LAFAN1, Rokoko, Perception Neuron, Xsens, OptiTrack, SMPL, Unity, VRM,
Unreal, Blender, 3ds Max and DAZ are known, with any prefix that most joints share. Parts have the
same names for all skeletons, such as "left_upper_arm", "left_index2" or "spine1".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from motion.skeleton.joint_names import SIDES, Side, side_of
from motion.skeleton.tree import Skeleton

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
# Names of the parts of each side, in the order in which parts choose among the joints. "Shoulder"
# is the upper arm only where no joint is called an arm, and "foot" the toes only beside an ankle.
LIMBS: dict[str, tuple[str, ...]] = {
    "upper_leg": ("upleg", "upperleg", "thigh", "thighbend", "femur", "hip"),
    "lower_leg": ("lowleg", "lowerleg", "shin", "calf", "tibia", "knee", "leg"),
    "foot": ("ankle", "foot"),
    "toes": ("toebase", "toes", "toe", "ball", "foot"),
    "upper_arm": ("uparm", "upperarm", "uarm", "arm", "shldr", "shldrbend", "humerus", "shoulder"),
    "collar": ("collar", "clavicle", "shoulder"),
    "lower_arm": ("lowarm", "lowerarm", "forearm", "farm", "forearmbend", "radius", "elbow"),
    "hand": ("wrist", "hand"),
    "eye": ("eye", "eyesmplhf"),
}
CENTRAL: dict[str, tuple[str, ...]] = {
    "hips": ("hips", "pelvis", "hip", "root"),
    "head": ("head", "upperneck"),
    "head_end": ("headtopend", "headend", "headtop"),
    "jaw": ("jaw",),
}
STEMS = frozenset(stem for stems in LIMBS.values() for stem in stems)
# Joints of the trunk where neither arms nor a head tell where it ends.
TRUNK = ("spine", "chest")
# Names of parts of the trunk, which a joint elsewhere must not have.
CHAIN = re.compile(r"(?:spine|neck)\d+")
# Where a prefix of a name can end: between a mark and a letter, or before a capital letter.
PREFIX_END = re.compile(r"(?<=[-_ .])(?=[^\W\d_])|(?<=[a-z\d])(?=[A-Z])")
FINGER = re.compile(
    r"(?:hand|f|finger)?(?P<in>inhand)?(?P<finger>thumb|index|middle|ring|pinky|little)(?:finger)?"
    r"(?P<phalanx>metacarpal|proximal|intermediate|medial|distal)?"
)
PHALANXES = {"metacarpal": 0, "proximal": 1, "intermediate": 2, "medial": 2, "distal": 3}
# Rokoko numbers the fingers, and names their bones: LeftFinger2Proximal.
NUMBERED_FINGER = re.compile(r"finger(?P<phalanx>metacarpal|proximal|medial|distal)")
FINGERS = ("thumb", "index", "middle", "ring", "pinky")
# A thumb has no intermediate bone. VRM, OpenXR and Rokoko name its bones as anatomy does, so the
# first of three is the metacarpal; Unity calls the same bones proximal, intermediate and distal.
THUMB_PHALANXES = {"metacarpal": 1, "proximal": 2, "distal": 3}
# Biped of 3ds Max numbers fingers from 0, the thumb, and then the bones after the first of each:
# Finger0, Finger01, Finger02 and Finger1, Finger11, Finger12.
BIPED_FINGER, BIPED_THUMB = re.compile(r"([0-4])([1-3]?)"), "0"


@dataclass(frozen=True)
class Label:
    """The name of a joint in small letters, taken apart.

    Attributes:
        side: the side of the body; None if the name does not say it.
        stem: the words without the side and the number, without blanks: "upleg".
        digits: the last digits in the name; empty without one.
    """

    side: Side | None
    stem: str
    digits: str

    @property
    def number(self) -> int | None:
        """The number in the name; None without one."""
        return int(self.digits) if self.digits else None

    @property
    def text(self) -> str:
        """The name that the joint has if no part is known by its name."""
        side = "" if self.side is None else f"{self.side}_"
        return f"{side}{self.stem}{'' if self.number is None else self.number}"


def find_parts(skeleton: Skeleton) -> tuple[str, ...]:
    """Returns the part of each joint, all different.

    A joint of no known part has its own name in small letters, with a number where joints share it.

    The joints between hips and arms are "spine1" and so on from below, the joints between arms and
    head "neck1" and so on.
    """
    labels = [read_label(name) for name in strip_prefixes(skeleton.names)]
    parts = name_by_stem(labels)
    name_trunk(skeleton, labels, parts)
    taken = Counter(parts.values())
    for joint, label in enumerate(labels):
        if joint not in parts:
            text = f"other {label.text}" if CHAIN.fullmatch(label.text) else label.text
            taken[text] += 1
            parts[joint] = f"{text} ({taken[text]})" if taken[text] > 1 else text
    return tuple(parts[joint] for joint in range(skeleton.joints))


def is_of(part: str, chain: str) -> bool:
    """Whether a part is a joint of the "spine" or the "neck"."""
    return part.startswith(chain) and part.removeprefix(chain).isdecimal()


def strip_prefixes(names: Sequence[str]) -> list[str]:
    """Returns names without what precedes a colon, and without a prefix that most of them share.

    A prefix does not tell a side. Roots above a body often lack the prefix of the other joints.
    """
    names = [name.rpartition(":")[2] or name for name in names]
    counts = Counter(name[: end.start()] for name in names for end in PREFIX_END.finditer(name))
    shared = (prefix for prefix, count in counts.items() if 2 * count > len(names))
    prefix = max((each for each in shared if side_of(each) is None), key=len, default="")
    return [name.removeprefix(prefix) or name for name in names]


def read_label(name: str) -> Label:
    """Takes a name apart: LeftHandIndex1 is the left side, "handindex" and 1."""
    side = side_of(name)
    words = [word.lower() for word in WORD.findall(name)]
    numbers = [word for word in words if word.isdigit()]
    words = [word for word in words if not word.isdigit()]
    if side is not None:
        # The side is a word, its first letter, or the beginning of a word: left, l, leftarm, lfoot.
        place = next(i for i, w in enumerate(words) if w[:1] == side[0] and side_of(w) == side)
        word = words[place]
        words[place] = word.removeprefix(side) if word.startswith(side) else word[1:]
    else:
        # VRoid marks what is neither left nor right by a C: J_Bip_C_Hips.
        words = [word for word in words if word != "c"] or words
    stem = "".join(words)
    if side is None and stem[1:] in STEMS and stem[0] in "lr":
        side, stem = ("left" if stem[0] == "l" else "right"), stem[1:]
    return Label(side, stem, numbers[-1] if numbers else "")


def name_by_stem(labels: Sequence[Label]) -> dict[int, str]:
    """Returns the parts of limbs, fingers and head, by joint."""
    parts: dict[int, str] = {}
    for side in (*SIDES, None):
        own = {joint: label for joint, label in enumerate(labels) if label.side == side}
        for part, stems in (CENTRAL if side is None else LIMBS).items():
            found = choose(own, stems, parts)
            if found is not None:
                parts[found] = part if side is None else f"{side}_{part}"
        for joint, label in own.items():
            finger = read_finger(label, own.values())
            if side is not None and finger is not None and joint not in parts:
                parts[joint] = f"{side}_{finger}"
    return drop_repeats(parts)


def choose(own: dict[int, Label], stems: Sequence[str], taken: dict[int, str]) -> int | None:
    """Returns the first joint that has the first possible of these names, and is not taken."""
    for stem in stems:
        for joint, label in own.items():
            if label.stem == stem and joint not in taken and not label.number:
                return joint
    return None


def read_finger(label: Label, hand: Collection[Label]) -> str | None:
    """Returns the finger and its bone, such as "index2"; 0 is the bone in the palm.

    Args:
        hand: all names of this side, which tell how the bones are counted.
    """
    if label.stem == "finger" and any(
        other.stem == "finger" and other.digits == BIPED_THUMB for other in hand
    ):
        biped = BIPED_FINGER.fullmatch(label.digits)
        return biped and f"{FINGERS[int(biped[1])]}{int(biped[2] or 0) + 1}"
    found = read_named_finger(label)
    if found is None:
        return None
    finger, bone = found
    if isinstance(bone, int):
        return f"{finger}{bone}"
    phalanxes = PHALANXES
    if finger == FINGERS[0] and (finger, "metacarpal") in map(read_named_finger, hand):
        phalanxes = PHALANXES | THUMB_PHALANXES
    return f"{finger}{phalanxes[bone]}"


def read_named_finger(label: Label) -> tuple[str, str | int] | None:
    """Returns the finger, and the name or the number of its bone, of a name that tells them."""
    numbered = NUMBERED_FINGER.fullmatch(label.stem)
    if numbered and label.number is not None and 1 <= label.number <= len(FINGERS):
        return FINGERS[label.number - 1], numbered["phalanx"]
    match = FINGER.fullmatch(label.stem)
    if match is None:
        return None
    number = 0 if match["in"] else 1 if label.number is None else label.number
    finger = "pinky" if match["finger"] == "little" else match["finger"]
    return finger, match["phalanx"] or number


def drop_repeats(parts: dict[int, str]) -> dict[int, str]:
    """Returns parts without joints whose part another joint before them has."""
    first = {part: joint for joint, part in sorted(parts.items(), reverse=True)}
    return {joint: part for part, joint in first.items()}


def name_trunk(skeleton: Skeleton, labels: Sequence[Label], parts: dict[int, str]) -> None:
    """Adds hips, spine and neck to parts, by their places between the legs, arms and the head."""
    joints = {part: joint for joint, part in parts.items()}
    legs, arms = (
        [joints[f"{side}_{part}"] for side in SIDES if f"{side}_{part}" in joints]
        for part in ("upper_leg", "upper_arm")
    )
    if "hips" not in joints and len(legs) == 2:
        joints["hips"] = meet(skeleton, *legs)
        parts.setdefault(joints["hips"], "hips")
    hips, head = joints.get("hips", 0), joints.get("head")
    top = meet(skeleton, *arms) if len(arms) == 2 else find_top(labels, head)
    if top is None:
        return
    if len(arms) == 2 and head is None:
        head = find_numbered_head(skeleton, labels, top)
        parts |= {} if head is None else {head: "head"}
    above = meet(skeleton, hips, top)
    if above != hips and labels[above].stem in CENTRAL["hips"]:
        # The hips of DAZ have a pelvis with the legs, and the spine, below them.
        del parts[hips]
        hips, parts[above] = above, "hips"
    spine = [joint for joint in path_between(skeleton, hips, top) if joint != head]
    if len(arms) == 2:
        neck = [] if head is None else path_between(skeleton, top, head)[:-1]
    else:
        neck = [joint for joint in spine if "neck" in labels[joint].stem]
    spine = [joint for joint in spine if joint not in neck]
    for name, chain in (("spine", spine), ("neck", neck)):
        parts.update({joint: f"{name}{number}" for number, joint in enumerate(chain, start=1)})


def find_top(labels: Sequence[Label], head: int | None) -> int | None:
    """Returns the end of the trunk of a body without arms; None without one."""
    trunk = (j for j, each in enumerate(labels) if not each.side and each.stem.startswith(TRUNK))
    return max(trunk, default=None) if head is None else head


def find_numbered_head(skeleton: Skeleton, labels: Sequence[Label], top: int) -> int | None:
    """Returns the last joint above the arms that is named as the spine; None without one.

    The spine of Rigify in Blender goes on as neck and head: spine.004 to spine.006.
    """
    above = (j for j, each in enumerate(labels) if not each.side and each.stem == labels[top].stem)
    return max((j for j in above if path_between(skeleton, top, j)), default=None)


def path_between(skeleton: Skeleton, above: int, joint: int) -> list[int]:
    """Returns the joints below ``above`` on the way to ``joint``; none if it hangs elsewhere."""
    path = path_to(skeleton, joint)
    return path[path.index(above) + 1 :] if above in path else []


def path_to(skeleton: Skeleton, joint: int) -> list[int]:
    """Returns the joints from the root to a joint."""
    path = [joint]
    while (joint := skeleton.parents[joint]) >= 0:
        path.append(joint)
    return path[::-1]


def meet(skeleton: Skeleton, one: int, other: int) -> int:
    """Returns the lowest joint that both joints hang on, or that one of them is."""
    pairs = zip(path_to(skeleton, one), path_to(skeleton, other), strict=False)
    return [a for a, b in pairs if a == b][-1]
