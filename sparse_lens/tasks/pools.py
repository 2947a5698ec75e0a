"""Words for the slots of prompt templates: disjoint between splits and from the generated programs."""

from __future__ import annotations

from collections.abc import Mapping

WordPools = Mapping[str, tuple[str, ...]]
"""Slot kind to words; the slot `<thing2>` has the kind `thing`."""


def _split(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SEARCH_WORDS: WordPools = {
    "thing": _split(
        """
        apple arrow bacon beach berry bird boat bone bottle bread bridge brush button candle carpet
        castle chair cheese cherry cloud coat coral cow crown cup desk dish dog door dress duck eagle
        ear egg fence finger fire flower fork fox frog garden gold goose grape hat hill honey ice island
        jar kettle kite lamp leaf lemon
        """
    ),
    "var": _split("current found buffer output known chars done state result match prefix left middle color"),
    "many": _split("apples birds bones chairs cups doors eggs forks games hills jars kites lamps lemons names nuts"),
    "verb": _split("bake bend bite boil carry climb cook cough crawl cut dance dig drink fall feed fight fold hunt"),
    "letter": _split("a c e i k n p s v x"),
    "digit": _split("2 4 6 8"),
}
"""Words of the prompts that circuits are searched on."""

HELDOUT_WORDS: WordPools = {
    "thing": _split(
        """
        lion lizard milk mirror monkey moon mountain mouse nail needle nest oak ocean olive onion orange
        owl oyster pear pencil pepper piano pigeon pillow plum pond rabbit rain ribbon river rock rope
        rose salt sand scarf sheep shell shoe silver snake snow soap spider spoon star stone sugar sun
        swan tail tiger toe tree turtle wall water whale wheel wind wing wolf wood wool
        """
    ),
    "var": _split("total parts seen text extra head token version suffix other base right outcome shade"),
    "many": _split("stars stones trees walls wheels wings wolves woods rivers roses ropes rocks pears owls nails mice"),
    "verb": _split("jump kick knit laugh lean lift melt paint plant pour rest ride roast sail sew shout sing sit sleep"),
    "letter": _split("b d f j m q t u w y"),
    "digit": _split("1 3 5 7 9"),
}
"""Words of the prompts that circuits are tested on."""
