"""Roles, scopes, types and surroundings of names: by hand, and against what the compiler says."""

import ast
import sysconfig
import textwrap
from pathlib import Path
from types import CodeType

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from sparse_lens.data.labels import label_tokens
from sparse_lens.data.labels.identifiers import CONTEXTS, ROLES, identifiers
from sparse_lens.data.labels.labelling import WORD_KINDS
from sparse_lens.data.labels.lexemes import KINDS, scan_source
from sparse_lens.data.labels.scopes import SCOPES, resolve_scopes
from sparse_lens.data.labels.surroundings import STATEMENTS
from sparse_lens.data.labels.tree import Places, parse_source, walk_scopes
from sparse_lens.data.labels.types import TYPES

LIBRARY = Path(sysconfig.get_paths()["stdlib"])


@pytest.fixture(scope="module")
def words():
    """A tokenizer whose tokens are words, single signs, and white space."""
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|\s+|[^\w\s]"), "isolated")
    return tokenizer


def labels_of(text, words, name, names=None):
    """The label of every word of a text, as (word, value) pairs without white space."""
    found = label_tokens(text, words)
    values = found.values[name].tolist()
    pairs = [(text[start:end], value) for (start, end), value in zip(found.offsets, values, strict=True)]
    return [(word, (names[value] if value >= 0 else None) if names else value) for word, value in pairs if not word.isspace()]


def test_roles(words):
    text = textwrap.dedent("""\
        from a.b import c as d
        @e.f(g=h)
        async def i(j, *k, l: m = n, **o):
            global p
            q.r.s = t(u=v)
            del w
        class x(y): pass
        """)
    expected = {
        "import_name": "abcd",
        "decorator": "ef",
        "keyword_argument": "gu",
        "variable": "hmnqtvwy",
        "function_name": "i",
        "parameter": "jklo",
        "other": "p",
        "attribute": "rs",
        "class_name": "x",
    }
    found = labels_of(text, words, "role", ROLES)
    assert {role: "".join(word for word, own in found if own == role) for role in expected} == expected
    assert all(own == "none" for word, own in found if len(word) > 1 or not word.isidentifier())
    contexts = dict(labels_of(text, words, "context", CONTEXTS))
    assert (contexts["s"], contexts["r"], contexts["w"], contexts["c"]) == ("store", "load", "delete", "none")
    assert [word for word, called in labels_of(text, words, "called") if called == 1] == ["f", "t"]


def test_surroundings(words):
    text = textwrap.dedent('''\
        class A:
            """B"""
            def c(self, d=e):
                for f in g:
                    if h: i
                    elif j: k
                    else: l
                return [m for m in n if o]
        p
        ''')

    def inside(name):
        return "".join(word for word, value in labels_of(text, words, name) if value == 1 and word.isidentifier())

    assert inside("in_class") == "class A B def c self d e for f in g if h i elif j k else l return m for m in n if o".replace(
        " ", ""
    )
    assert inside("in_docstring") == "B"
    assert inside("in_method") == inside("in_function") == inside("in_class").removeprefix("classAB")
    assert inside("in_default") == "e" and inside("in_else") == "l" and inside("in_condition") == "hj"
    assert inside("in_loop") == "forfingifhielifjkelsel" and inside("in_comprehension") == "mforminnifo"
    nesting = dict(labels_of(text, words, "nesting"))
    assert (nesting["A"], nesting["c"], nesting["f"], nesting["h"], nesting["k"], nesting["l"], nesting["p"]) == (
        1,
        2,
        3,
        4,
        4,
        4,
        0,
    )
    statement = dict(labels_of(text, words, "statement", STATEMENTS))
    assert (statement["p"], statement["o"], statement["f"], statement["k"]) == ("Expr", "Return", "For", "Expr")


def test_types_by_last_assignment_keyed_by_scope(words):
    text = textwrap.dedent("""\
        def first():
            x = set(); x.add(1)
            x = "a"; x.join
            def inner(): return x
        def second(x: dict, y):
            x; y
            x = [1]; x += [2]; z = x; z
            a, b = {}, 3; a; b
            del x; x
        x
        (w := {1}); w
        """)
    found = labels_of(text, words, "variable_type", TYPES)

    def types(name):
        return [kind for word, kind in found if word == name]

    assert types("x") == ["set", "set", "str", "str", "str", "dict", "dict", "list", "list", "list", None, None, None]
    assert types("y") == [None, None] and types("z") == ["list", "list"]
    assert types("a")[1:] == ["dict", "dict"] and types("b") == ["int", "int"] and types("w") == ["set", "set"]
    assert types("def") == ["none"] * 3


def test_scopes(words):
    text = textwrap.dedent("""\
        import m
        def f(a, b):
            c = a
            def g(): return b + m
            return [d for d in c]
        class C:
            __p = 1
            e = __p
            f(len)
        """)
    found = [(word, scope) for word, scope in labels_of(text, words, "scope", SCOPES) if scope != "none"]
    assert found == [
        *(("a", "local"), ("b", "cell"), ("c", "local"), ("a", "local"), ("b", "free"), ("m", "global"), ("d", "local")),
        *(("d", "local"), ("c", "local"), ("__p", "local"), ("e", "local"), ("__p", "local"), ("f", "global"), ("len", "global")),
    ]


def code_objects(code):
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from code_objects(constant)


def test_scopes_agree_with_the_compiler():
    """Local, cell and free names of every function, against the compiled code; several lambdas in a line are matched by order."""
    n_checked = 0
    for name in ("functools", "typing", "dataclasses", "enum", "contextlib"):
        text = (LIBRARY / f"{name}.py").read_text(encoding="utf-8")
        tree = parse_source(text, scan_source(text))
        _, scopes = walk_scopes(tree)
        tables = resolve_scopes(text, scopes)
        assert sum(table is None for table in tables) <= 0.02 * len(tables)
        by_place = {}
        for scope, table in zip(scopes, tables, strict=True):
            by_place.setdefault((scope.name, scope.line), []).append((scope, table))
        first_line = {
            (node.name, min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])): node.lineno
            for node in ast.walk(tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        }
        for code in code_objects(compile(text, name, "exec")):
            line = first_line.get((code.co_name, code.co_firstlineno))
            places = by_place.get((code.co_name, line), [])
            if len(places) != 1 or places[0][1] is None:
                continue
            table = {key: SCOPES[value] for key, value in places[0][1].items()}
            own = {key for key in table if key in (*code.co_varnames, *code.co_cellvars, *code.co_freevars)}
            for variable in own:
                expected = "free" if variable in code.co_freevars else "cell" if variable in code.co_cellvars else "local"
                assert table[variable] == expected, (name, code.co_name, variable)
            n_checked += len(own)
    assert n_checked > 500


def test_lambdas_of_one_line_keep_their_order(words):
    text = "def f(p):\n    return lambda x=lambda q: p: (lambda r: r, lambda p: p)\n"
    found = [(word, scope) for word, scope in labels_of(text, words, "scope", SCOPES) if scope != "none"]
    assert [scope for word, scope in found if word == "p"] == ["cell", "free", "local", "local"]


def heads(decorator):
    """The nodes of a decorator's dotted name."""
    node = decorator.func if isinstance(decorator, ast.Call) else decorator
    while isinstance(node, ast.Attribute):
        yield node
        node = node.value
    yield node


def test_every_name_of_the_tree_is_labelled_where_it_stands():
    """On real files, by the tree's own text: names, attributes and parameters, in order of place."""
    for name in ("tarfile", "difflib", "ast"):
        text = (LIBRARY / f"{name}.py").read_text(encoding="utf-8")
        tree, scan = ast.parse(text), scan_source(text)
        inside = {id(n) for s in ast.walk(tree) if isinstance(s, ast.JoinedStr) for n in ast.walk(s)}
        decorators = {id(n) for f in ast.walk(tree) for d in getattr(f, "decorator_list", ()) for n in heads(d)}
        plain = [node for node in ast.walk(tree) if id(node) not in inside | decorators]
        expected = {
            "variable": sorted((n.lineno, n.col_offset, n.id) for n in plain if isinstance(n, ast.Name)),
            "attribute": sorted((n.end_lineno, n.end_col_offset, n.attr) for n in plain if isinstance(n, ast.Attribute)),
            "parameter": sorted((n.lineno, n.col_offset, n.arg) for n in plain if isinstance(n, ast.arg)),
        }
        visits, scopes = walk_scopes(tree)
        role = identifiers(text, scan, visits, scopes, Places(text))["role"]
        ends = np.append(scan.starts[1:], len(text))
        for what, nodes in expected.items():
            own = [text[scan.starts[i] : ends[i]] for i in np.flatnonzero(role == ROLES.index(what))]
            assert own == [word for *_, word in nodes]


def test_columns_are_bytes_of_utf_8(words):
    text = "é = {'ä': ö.ü}; ß(ñ=é)\ndef λ(μ): return μ\n"
    roles = labels_of(text, words, "role", ROLES)
    assert [(word, role) for word, role in roles if role != "none"] == [
        *(
            ("é", "variable"),
            ("ö", "variable"),
            ("ü", "attribute"),
            ("ß", "variable"),
            ("ñ", "keyword_argument"),
            ("é", "variable"),
        ),
        *(("λ", "function_name"), ("μ", "parameter"), ("μ", "variable")),
    ]
    assert [kind for word, kind in labels_of(text, words, "variable_type", TYPES) if word == "é"] == ["dict", "dict"]


def test_byte_order_mark_and_line_ends(words):
    for text in ("\ufeffab = cd\n", "x = 1\r\nab = cd\r\n", "x = 1\rab = cd\r"):
        roles = dict(labels_of(text, words, "role", ROLES))
        assert roles["ab"] == roles["cd"] == "variable"


def test_names_in_format_strings_are_unknown_on_every_python(words):
    found = labels_of("a = f'{b}'\n", words, "role", ROLES)
    assert dict(found)["a"] == "variable" and dict(found)["b"] is None


@pytest.mark.parametrize("text", ["def f(a, b:\n", "x = 'abc", "x = ((1)\n", "print 1\n", "a\0b\n", "x=" + "(" * 150 + ")" * 150])
def test_what_does_not_parse_has_lexical_labels_only(text, words):
    found = label_tokens(text, words)
    assert not found.parsed
    for name in ("role", "scope", "variable_type", "in_function", "statement", "nesting"):
        assert (found.values[name] == -1).all()
    for name in ("bracket_depth", "in_string", "kind"):
        assert (found.values[name] >= 0).all()


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "+".join("a" * 20_000),
        "x = " + "-" * 50_000 + "1",
        "a" + ".b" * 50_000,
        "lambda:" * 3000 + "0",
        "if x:\n 0\n" + "elif x:\n 0\n" * 3000,
        "x = " + "a if b else " * 500 + "c",
        "".join(f"{' ' * i}if x:\n" for i in range(90)) + " " * 90 + "y",
    ],
    ids=["sum", "minus", "dots", "lambdas", "elif", "conditional", "nested"],
)
def test_deep_source_is_labelled_or_unparsable(text, words):
    found = label_tokens(text, words)
    assert len(found.ids) and all(len(values) == len(found.ids) for values in found.values.values())


def test_kinds_of_words(words):
    text = "print(self.print, 1.5)  # if\nif None: x\n"
    found = [(word, kind) for word, kind in labels_of(text, words, "kind", WORD_KINDS) if word.isidentifier()]
    assert found == [
        *(("print", "builtin"), ("self", "name"), ("print", "name"), ("if", "comment")),
        *(("if", "keyword"), ("None", "keyword"), ("x", "name")),
    ]
    assert [value for word, value in labels_of(text, words, "first_use") if word == "print"] == [1, 0]
    assert KINDS.index("comment") == 2


def test_own_names_that_are_spelled_like_built_in_ones_are_names(words):
    text = "def f(id, n):\n    max = id\n    return max(len(n), key=id), f(n, id=3)\nid(f)\n"
    found = [(word, kind) for word, kind in labels_of(text, words, "kind", WORD_KINDS) if word in ("id", "max", "len")]
    assert [kind for word, kind in found if word == "id"] == ["name", "name", "name", "name", "builtin"]
    assert [kind for word, kind in found if word == "max"] == ["name", "name"] and ("len", "builtin") in found


@pytest.mark.parametrize(
    ("definition", "kind"),
    [
        ("def open(x): ...", "name"),
        ("open = 3", "name"),
        ("from gzip import open", "name"),
        ("class A:\n    def open(self): ...", "builtin"),
        ("def f():\n    open = 3", "builtin"),
        ("x = 3", "builtin"),
    ],
)
def test_what_the_module_binds_is_a_name_wherever_it_is_read(definition, kind, words):
    """At its top level: a method and a local variable shadow nothing elsewhere."""
    text = f"{definition}\ny = open(x)\ndef g():\n    return open, len\n"
    found = labels_of(text, words, "kind", WORD_KINDS)
    assert [of for word, of in found if word == "open"][-2:] == [kind, kind]
    assert ("len", "builtin") in found


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("x = 0; x += 0.5", ["int", None]),
        ("x = 0; x += 2", ["int", "int"]),
        ("x = 4; x /= 2", ["int", None]),
        ("x = 'a'; x += y", ["str", "str"]),
        ("x = {1}; x -= y", ["set", "set"]),
        ("x = {}; x |= y", ["dict", "dict"]),
    ],
)
def test_an_update_keeps_the_type_that_its_operator_keeps(text, kinds, words):
    found = [kind for word, kind in labels_of(text, words, "variable_type", TYPES) if word == "x"]
    assert found == kinds
