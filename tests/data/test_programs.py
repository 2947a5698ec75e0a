import ast
import hashlib
import random

from sparse_lens.data.programs import GENERATOR_VERSION, generate_program


def test_programs_parse_and_have_15_to_60_lines(programs: list[str]) -> None:
    for program in programs:
        ast.parse(program)
        assert 15 <= program.count("\n") <= 60


def test_programs_differ_and_are_determined_by_their_seed(programs: list[str]) -> None:
    assert len(set(programs)) == 300
    assert programs[:10] == [generate_program(random.Random(seed)) for seed in range(10)]


def test_a_change_of_the_generator_must_raise_its_version(programs: list[str]) -> None:
    text = "".join(programs[:50])
    assert (GENERATOR_VERSION, hashlib.sha256(text.encode()).hexdigest()[:16]) == (1, "7ea0b0237eaa0cab")


def test_programs_teach_every_construct_often(programs: list[str]) -> None:
    text = "".join(programs)
    constructs = (
        *(
            "while True:",
            "return True\n",
            "with open(",
            "return open(",
            "enumerate(",
            "range(",
            "lambda ",
            "elif ",
        ),
        *(
            ".add(",
            " += ",
            ".append(",
            " == ",
            "= set()",
            '= ""',
            "= ''",
            "[[",
            "]]",
            "{",
            "class ",
            "except ",
            'f"',
        ),
    )
    rare = {construct for construct in constructs if text.count(construct) < 30}
    assert not rare
