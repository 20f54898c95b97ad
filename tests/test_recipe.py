"""Recipes are plain data: every spelling gives the same recipe, every mistake an error that names the fix."""

import json
from dataclasses import replace

import pytest

from qpass.errors import RecipeError
from qpass.formats import Scheme
from qpass.overrides import overridden
from qpass.recipe import Line, Recipe

DATA = {"linears": {"lm_head": "keep", "*.down_proj": "w8a16", "*": "w4a16-g128"}}


def test_python_json_and_yaml_agree(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(DATA))
    (tmp_path / "mine.yaml").write_text("linears:\n  lm_head: keep\n  '*.down_proj': w8a16\n  '*': w4a16-g128\n")
    recipes = [Recipe.parse(DATA), Recipe.parse(tmp_path / "mine.json"), Recipe.parse(str(tmp_path / "mine.yaml"))]
    assert len({recipe.lines for recipe in recipes}) == 1
    assert recipes[1].name == "mine"


def test_as_dict_round_trips():
    recipe = Recipe.parse(DATA)
    assert Recipe.parse(recipe.as_dict()) == recipe


METHODS = {"methods": ["smoothquant-free", {"smoothquant": {"alpha": 0.75}}], "linears": {"*": "w8a8-int8"}}


def test_methods_round_trip():
    recipe = Recipe.parse(METHODS)
    assert [method.name for method in recipe.methods] == ["smoothquant-free", "smoothquant"]
    assert recipe.methods[1].alpha == 0.75 and recipe.as_dict()["methods"] == METHODS["methods"]
    assert Recipe.parse(recipe.as_dict()) == recipe


def test_names_with_methods():
    preset, spelled = Recipe.parse("smoothquant-w8a8"), Recipe.parse("smoothquant+w8a8-int8")
    assert (preset.methods, preset.lines) == (spelled.methods, spelled.lines) and str(preset) == "smoothquant-w8a8"
    two = Recipe.parse("smoothquant-free+smoothquant+w4a8-g64")
    assert len(two.methods) == 2 and str(two.lines[0].scheme) == "int4:g64:asym x int8:token:asym"
    assert Recipe.parse(two.as_dict()) == two


@pytest.mark.parametrize(
    ("preset", "spelled"),
    [
        ("zeroquant-fp-w4a8", "gptq+w4a8-fp"),
        ("zeroquant-fp-w4a8-m1", "gptq+w4a8-fp-m1"),
        ("zeroquant-fp-w4a8-m2", "gptq+w4a8-fp-m2"),
        ("zeroquant-fp-w4a8-g64-m2", "gptq+w4a8-fp-g64-m2"),
        ("zeroquant-fp-w4a8-g320", "gptq+w4a8-fp-g320"),
        ("w4a16-g128-gptq", "gptq+w4a16-g128"),
        ("w4a16-g32-gptq", "gptq+w4a16-g32"),
        ("w3a16-g96-gptq", "gptq+w3a16-g96"),
        ("smoothquant+w4a16-g32-gptq", "smoothquant+gptq+w4a16-g32"),
    ],
)
def test_presets_with_any_number(preset, spelled):
    one, two = Recipe.parse(preset), Recipe.parse(spelled)
    assert (one.methods, one.lines) == (two.methods, two.lines) and str(one) == preset
    assert Recipe.parse(one.as_dict()) == one


def test_methods_in_yaml(tmp_path):
    text = "methods:\n  - smoothquant: {alpha: 0.75, exclude: '*.o_proj'}\nlinears:\n  '*': w8a8-int8\n"
    (tmp_path / "mine.yaml").write_text(text)
    (method,) = Recipe.parse(tmp_path / "mine.yaml").methods
    assert (method.alpha, method.exclude) == (0.75, ("*.o_proj",))


def test_first_match_wins_with_and_without_the_weight_suffix():
    recipe = Recipe.parse(DATA)
    winner = next(line for line in recipe.lines if line.matches(["model.layers.0.mlp.down_proj.weight"]))
    assert winner.glob == "*.down_proj"
    assert recipe.lines[0].matches(["embed.weight", "lm_head.weight"])


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("w8a8-in8", "unknown scheme 'w8a8-in8'. Fix: use 'w8a8-int8'."),
        ({"linear": {"*": "w8a16"}}, "unknown field 'linear' in a recipe. Fix: use 'linears'."),
        ({"linears": {}}, "a recipe without a mapping 'linears'"),
        ({"linears": {"*": "w8a61"}}, "unknown scheme 'w8a61' (at line '*'). Fix: use 'w8a16'."),
        ({"linears": {"*": {"weigth": "int8"}}}, "{'weigth': 'int8'} is no scheme (at line '*')"),
        ({"linears": {"*": 8}}, "8 is no scheme (at line '*'). Fix: write a scheme such as 'w8a8-int8'"),
        (["w8a8-int8"], "a recipe cannot be a list. Fix: pass a name such as 'w8a8-int8', a file"),
        (None, "a recipe cannot be a NoneType"),
        ("smothquant+w8a8-int8", "unknown method 'smothquant'. Fix: use 'smoothquant'."),
        ("smoothquant+w8a8-in8", "unknown scheme 'w8a8-in8'. Fix: use 'w8a8-int8'."),
        ("smoothquant", "'smoothquant' is a method, not a scheme. Fix: say what the linears compute in, as in"),
        ("smoothquant-w8a9", "unknown scheme 'smoothquant-w8a9'. Fix: use 'smoothquant-w8a8'."),
        ({"method": [], "linears": {"*": "w8a16"}}, "unknown field 'method' in a recipe. Fix: use 'methods'."),
        ({"methods": [3], "linears": {"*": "w8a16"}}, "3 is no method (at methods)"),
        ({"methods": ["gtpq"], "linears": {"*": "w8a16"}}, "unknown method 'gtpq'"),
        ({"methods": [{"smoothquant": {"alhpa": 1}}], "linears": {"*": "w8a16"}},
         "unknown option 'alhpa' (at method smoothquant). Fix: use 'alpha'."),
        ("zeroquant-fp-w4a8-m3", "unknown scheme 'zeroquant-fp-w4a8-m3'. Fix: use 'zeroquant-fp-w4a8-m"),
        ("zeroquant-fp-w4a8-m2-g64", "unknown scheme 'zeroquant-fp-w4a8-m2-g64'. Fix: use 'zeroquant-fp-w4a8-m2'."),
        ("zeroqant-fp-w4a8", "unknown scheme 'zeroqant-fp-w4a8'. Fix: use 'zeroquant-fp-w4a8'."),
        ("w4a16-gptq", "unknown scheme 'w4a16-gptq'. Fix: use 'w4a16-g"),
        ("w4a16-g1-gptq", "a group of 1 values"),
        ("gptq", "'gptq' is a method, not a scheme"),
        ("nowhere.yaml", "cannot read the recipe: No such file or directory (at nowhere.yaml)"),
    ],
)
def test_mistakes(recipe, message):
    with pytest.raises(RecipeError) as error:
        Recipe.parse(recipe)
    assert message in str(error.value)


def test_hostile_yaml_is_refused(tmp_path):
    bomb = tmp_path / "bomb.yaml"
    bomb.write_text("a: &a [x, x]\nlinears: {'*': *a}\n")
    with pytest.raises(RecipeError, match="aliases are not allowed"):
        Recipe.parse(bomb)
    code = tmp_path / "code.yaml"
    code.write_text("linears: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(RecipeError, match="not valid YAML"):
        Recipe.parse(code)


@pytest.mark.parametrize(
    ("assignment", "found"),
    [
        ("learning.steps=64", lambda made: made.learning.steps == 64),
        ("learning.inputs=teacher", lambda made: made.learning.inputs == "teacher"),
        ("lwc.rate=5e-2", lambda made: made.methods[0].rate == 0.05),
        ("let.kinds=[linear-norm]", lambda made: made.methods[1].kinds == ("linear-norm",)),
        ("linears.lm_head=keep", lambda made: made.lines[0] == Line("lm_head", None)),
        ("linears.*=w6a6", lambda made: [str(line.scheme) for line in made.lines] == [str(Scheme.parse("w6a6"))]),
    ],
)
def test_overrides(assignment, found):
    before = Recipe.parse("omniquant-w4a4")
    after = overridden(before, [assignment])
    assert found(after) and not found(before)
    assert after.learning.same_input and after.name == before.name


@pytest.mark.parametrize("word", ["int-only-w8a8", "omniquant-w4a4", "w8a8-int8+kv4", "fsbr+int-only-w4a4"])
def test_an_override_leaves_the_rest_as_it_is(word):
    before = Recipe.parse(word)
    after = overridden(before, ["learning.seed=7"])
    assert after == replace(before, learning=replace(before.learning, seed=7))


def test_overrides_of_an_integer_only_recipe():
    after = overridden(Recipe.parse("int-only-w8a8"), ["integer.context=64", "integer.clip=15", "fsbr.rate=0.1"])
    assert (after.integer.context, after.integer.clip, after.integer.mode) == (64, 15, "precise")
    assert not after.methods and next(method.rate for method in after.with_data if method.name == "fsbr") == 0.1
    for assignment, message in (("integer.contxt=3", "unknown option 'contxt'"), ("integer.mode=foo", "mode is 'foo'")):
        with pytest.raises(RecipeError, match=message):
            overridden(Recipe.parse("int-only-w8a8"), [assignment])
    with pytest.raises(RecipeError, match="has no 'integer'"):
        overridden(Recipe.parse("w8a8-int8"), ["integer.context=64"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("learning.step=64", "unknown field 'step'"),
        ("learning.steps=soon", "steps is 'soon'"),
        ("fsbr.rate=1", "has no 'fsbr'"),
        ("lwc.rte=1", "rte"),
        ("learning", "'learning' sets nothing"),
        ("learning.steps=[1", "is no value"),
        ("linears.*=w4a", "unknown scheme"),
    ],
)
def test_overrides_that_are_wrong(assignment, message):
    with pytest.raises(RecipeError) as error:
        overridden(Recipe.parse("omniquant-w4a4"), [assignment])
    assert message in str(error.value) and "Fix: " in str(error.value)
