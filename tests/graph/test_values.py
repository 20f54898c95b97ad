from __future__ import annotations

from qpass.capture.normalise import normalise
from qpass.graph.values import assign_names, clean_scopes, op_name
from tests.tiny import captured, normal, raised


def names(program: object) -> list[str]:
    return [node.meta["name"] for node in program.nodes()]  # type: ignore[attr-defined]


def test_names_are_unique_and_stable() -> None:
    for program in (captured(), normal(), raised()):
        found = [node.meta["name"] for node in program.graph.nodes]
        assert len(set(found)) == len(found)
    assert names(normalise(captured())) == names(normal())


def test_a_modules_result_has_its_name() -> None:
    for program in (captured(), normal(), raised()):
        for path in ("embed", "layers.0.norm1", "layers.0.attn.q_proj", "layers.1.mlp.down_proj", "layers.0", "norm"):
            program.value(path)


def test_a_norm_keeps_its_name_when_its_last_cast_goes() -> None:
    assert names(captured("offset"))[-2] == "norm"
    assert "norm/type_as" not in names(normal("offset"))
    assert normal("offset").value("norm").target.__name__ == "mul.Tensor"


def test_rewriting_a_module_renames_nothing_outside() -> None:
    before = {name for name in names(normal()) if not name.startswith("layers.0.norm1")}
    after = {name for name in names(raised()) if not name.startswith("layers.0.norm1")}
    assert "layers.0.norm1" in names(raised())
    assert after <= before


def test_no_module_of_the_exporter_in_a_name() -> None:
    assert not [name for name in names(captured()) if "_empty" in name]


def test_scopes() -> None:
    stack = {"a": ("", object), "b": ("m.layers.0", object), "c": ("m.layers.0.mlp@1", object)}
    assert clean_scopes(stack, "m.") == ("layers.0", "layers.0.mlp@1")
    assert clean_scopes({"_empty_nn_module_stack_from_metadata_hook": ("x", object)}, "") == ()
    assert clean_scopes(None, "m.") == ()


def test_op_name() -> None:
    import operator

    import torch

    from qpass import ops

    found = [op_name(target) for target in (torch.ops.aten.add.Tensor, ops.rms_norm, operator.getitem)]
    assert found == ["add", "qpass.rms_norm", "getitem"]


def test_names_that_exist_stay() -> None:
    program = normalise(captured())
    before = names(program)
    assign_names(program.graph)
    assert names(program) == before
