"""GPTQ against explicit elimination, its identities, and its guarantee; for every kind of format."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qpass.errors import NumericsError, RecipeError
from qpass.formats import Format
from qpass.numerics import codec
from qpass.numerics.gptq import Settings, is_static, sweep
from qpass.numerics.hessian import Inputs, factor, float_target, row_losses
from qpass.numerics.scales import Scales
from tests.numerics.gptq_oracle import damped, eliminate, hessian, layer, output_losses

DOUBLE = Settings(dtype=torch.float64)
FORMATS = [
    "int4:g16:asym", "int4:g16:sym", "int2:g10:asym:f32", "int3:channel:asym", "int8:tensor:sym", "int4:g12:full",
    "int5:b4x16:sym", "e2m1:g16:sym:f16", "e2m1:g16:sym:m1", "e2m1:g16:sym:m2", "e2m1:g32:sym:e8m0", "nvfp4",
    "e3m0:g16:sym", "e4m3:channel:sym", "e4m3:b4x16:sym", "e5m2:g24:sym", "e4m3fnuz:channel:sym", "int4:g16:sym:m1",
]  # fmt: skip


def formats(words=FORMATS):
    return pytest.mark.parametrize("fmt", [Format.parse(word) for word in words], ids=str)


def values(found, fmt):
    return codec.dequantize(found.codes, found.scales, fmt, torch.float32).double()


def better(w, x, fmt, mine, near):
    """What the guarantee makes of two roundings: the better of each row, of each block where scales differ."""
    losses = [output_losses(w, part, x) for part in (mine, near)]
    if fmt.rows and not is_static(fmt, Settings()):
        losses = [torch.cat([part.sum().expand(len(part)) for part in loss.split(fmt.rows)]) for loss in losses]
    return losses[0] <= losses[1]


# ------------------------------------------------------------------------------------------------------ the sweep


@formats()
@pytest.mark.parametrize("width", [48, 45])
def test_blocks_of_any_size_give_the_codes_of_elimination(fmt, width):
    w, x = layer(1, 12, width, 200)
    h = hessian(x)
    live = not is_static(fmt, DOUBLE)
    codes, want = eliminate(w, h, fmt, live=live)
    near = codec.choose(w, fmt)
    near_codes = codec.quantize(w, near, fmt)
    mine = better(w, x, fmt, want, codec.dequantize(near_codes, near, fmt, torch.float32).double())
    expected = torch.where(mine[:, None], codes.float(), near_codes.float())
    for block in (1, 7, 16, 128):
        found = sweep(w, fmt, Inputs(h), settings=replace(DOUBLE, block=block))
        assert found.codes.dtype is fmt.code_dtype and found.codes.is_contiguous()
        assert torch.equal(found.codes.float(), expected) and found.kept == int((~mine).sum())
        assert found.scales.scale.dtype is fmt.scale_dtype and found.scales.scale.shape == near.scale.shape


@pytest.mark.parametrize("word", ["int4:g16:asym", "e2m1:g16:sym:f16", "int4:b4x16:sym"])
@pytest.mark.parametrize("static", [False, True])
def test_scales_chosen_before_or_on_the_way(word, static):
    fmt = Format.parse(word)
    w, x = layer(2, 12, 45, 300)
    codes, _ = eliminate(w, hessian(x), fmt, live=not static)
    found = sweep(w, fmt, Inputs(hessian(x)), settings=replace(DOUBLE, static=static, block=20))
    assert found.kept == 0 and torch.equal(found.codes.float(), codes.float())
    if static:
        assert torch.equal(found.scales.scale, codec.choose(w, fmt).scale)


@formats()
def test_loss_identity(fmt):
    """Σ ‖e_i‖² = tr((W - Q)(H + λI)(W - Q)ᵀ), so the values in the sweep are those that the codes stand for."""
    w, x = layer(3, 9, 45, 300)
    h = hessian(x)
    found = sweep(w, fmt, Inputs(h), settings=DOUBLE)
    full, _ = damped(h)
    if found.kept:
        _, q = eliminate(w, h, fmt, live=not is_static(fmt, DOUBLE))
    else:
        q = values(found, fmt)
    error = w - q
    assert found.damped == pytest.approx(float((error @ full * error).sum()), rel=1e-12)


@formats()
@pytest.mark.parametrize("act_order", [False, True])
def test_inputs_that_do_not_correlate_make_it_round_to_nearest(fmt, act_order):
    """Bit for bit, so Quant is that of ``codec``."""
    random = torch.Generator().manual_seed(4)
    w = torch.randn(12, 45, generator=random)
    h = torch.rand(45, generator=random).add(0.1).diag()
    found = sweep(w, fmt, Inputs(h), settings=Settings(act_order=act_order))
    near = codec.choose(w, fmt)
    assert torch.equal(found.codes.float(), codec.quantize(w, near, fmt).float())
    assert all((one is None and two is None) or torch.equal(one.float(), two.float())
               for one, two in zip(found.scales, near))  # fmt: skip


@formats()
def test_a_weight_on_the_grid_stays(fmt):
    w, x = layer(5, 12, 48, 100)
    near = codec.choose(w, fmt)
    w = codec.dequantize(codec.quantize(w, near, fmt), near, fmt, torch.float32)
    found = sweep(w, fmt, Inputs(hessian(x)), given=near, settings=DOUBLE)
    assert torch.equal(values(found, fmt), w.double()) and found.loss == 0


def test_groups_of_one_column_lose_nothing():
    """With the scale |w| / 7 each column is exact; 7 and 2^k keep the division so too."""
    w = torch.tensor([[7.0], [-3.5], [14.0]])
    found = sweep(w, Format.parse("int4:channel:sym"), Inputs(torch.eye(1)))
    assert found.loss == 0 and found.codes.flatten().tolist() == [7, -7, 7]


@formats(["int4:g16:asym", "e2m1:g16:sym:m2", "nvfp4", "int4:b4x16:sym", "e4m3:channel:sym"])
def test_act_order_keeps_scales_by_the_original_column(fmt):
    w, x = layer(6, 12, 45, 300)
    h = hessian(x)
    order = torch.argsort(h.diagonal(), descending=True, stable=True).tolist()
    codes, _ = eliminate(w, h, fmt, order=order)
    found = sweep(w, fmt, Inputs(h), settings=replace(DOUBLE, act_order=True))
    assert found.kept == 0 and torch.equal(found.codes.float(), codes.float())
    assert torch.equal(found.scales.scale.float(), codec.choose(w, fmt).scale.float())


def test_act_order_of_descending_inputs_is_the_natural_order():
    w, x = layer(7, 12, 45, 300)
    x = x[:, torch.argsort(hessian(x).diagonal(), descending=True)]
    fmt, inputs = Format.parse("int4:g16:asym"), Inputs(hessian(x))
    one = sweep(w, fmt, inputs, settings=replace(DOUBLE, act_order=True))
    two = sweep(w, fmt, inputs, settings=replace(DOUBLE, static=True))
    assert torch.equal(one.codes, two.codes)


def test_given_scales_are_used():
    """Of an earlier method: here twice as large as needed, in two levels."""
    fmt = Format.parse("e2m1:g16:sym:m2")
    w, x = layer(8, 12, 48, 200)
    chosen = codec.choose(w, fmt)
    given = Scales(chosen.scale, outer=chosen.outer * 2)
    found = sweep(w, fmt, Inputs(hessian(x)), given=given, settings=DOUBLE)
    assert found.scales is given and found.loss <= found.nearest
    assert values(found, fmt).abs().max() <= (chosen.outer * 12).max()


# --------------------------------------------------------------------------------------------------- the guarantee


@formats(["int4:g32:asym", "e2m1:g32:sym:f16", "int3:g24:sym", "e2m1:g32:sym:m2"])
def test_never_worse_than_round_to_nearest(fmt):
    """200 layers, some with fewer rows than inputs, judged by the outputs; and far better on the whole."""
    mine = near = 0.0
    for seed in range(200):
        w, x = layer(seed, 8, 40, 8 + seed)
        found = sweep(w, fmt, Inputs(hessian(x)), settings=DOUBLE)
        scales = codec.choose(w, fmt)
        nearest = codec.dequantize(codec.quantize(w, scales, fmt), scales, fmt, torch.float32).double()
        losses = output_losses(w, values(found, fmt), x), output_losses(w, nearest, x)
        assert bool((losses[0] <= losses[1] * (1 + 1e-9)).all())
        assert found.loss == pytest.approx(float(losses[0].sum())) and found.nearest == pytest.approx(losses[1].sum())
        mine, near = mine + found.loss / found.nearest, near + 1
    assert mine / near < 0.7


@formats(["int2:g32:sym", "int2:b2x16:sym"])
def test_rows_in_which_the_sweep_loses_are_rounded_to_nearest(fmt):
    """The sweep has no bound of its own; such rows exist, and the report counts them."""
    kept = 0
    for seed in range(60):
        w, x = layer(seed, 12, 48, 6)
        found = sweep(w, fmt, Inputs(hessian(x)))
        kept += found.kept
        assert found.loss <= found.nearest
        assert float(output_losses(w, values(found, fmt), x).sum()) == pytest.approx(found.loss, rel=1e-3, abs=1e-7)
    assert kept > 0


@formats(["int4:g16:asym", "e2m1:g16:sym:f16"])
@pytest.mark.parametrize("factor_", [2.0**-12, 2.0**9, 3.7])
def test_a_positive_factor_of_the_inputs_changes_nothing(fmt, factor_):
    w, x = layer(9, 12, 45, 300)
    one, two = (sweep(w, fmt, Inputs(hessian(part)), settings=DOUBLE) for part in (x, x * factor_))
    assert torch.equal(one.codes, two.codes) and one.dead == two.dead == 0


@formats(["int4:g16:asym", "e2m1:g16:sym:m2", "int8:channel:sym"])
@pytest.mark.parametrize("act_order", [False, True])
def test_dead_columns_become_zero(fmt, act_order):
    w, x = layer(10, 12, 45, 300)
    dead = [0, 17, 44]
    x[:, dead] = 0
    found = sweep(w, fmt, Inputs(hessian(x)), settings=replace(DOUBLE, act_order=act_order))
    assert found.dead == 3 and not values(found, fmt)[:, dead].any() and found.loss < found.nearest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_model_dtypes_in_float32(dtype):
    w, x = (part.to(dtype) for part in layer(11, 16, 64, 400))
    fmt = Format.parse("int4:g16:asym")
    found = sweep(w, fmt, Inputs(hessian(x.float())))
    wide = sweep(w, fmt, Inputs(hessian(x.double())), settings=DOUBLE)
    assert found.loss <= found.nearest and found.loss == pytest.approx(wide.loss, rel=0.05)


# ------------------------------------------------------------------------------------------------------ bad inputs


def test_the_factor_is_that_of_the_inverse():
    _, x = layer(13, 2, 24, 100)
    found = factor(hessian(x), 0.01)
    inverse = torch.linalg.inv(damped(hessian(x))[0])
    assert found.damping == pytest.approx(0.01 * float(hessian(x).diagonal().mean())) and found.times == 0
    torch.testing.assert_close(found.upper, torch.linalg.cholesky(inverse, upper=True))


def test_fewer_rows_than_columns():
    w, x = layer(12, 12, 64, 5)
    found = sweep(w, Format.parse("int4:g16:asym"), Inputs(hessian(x).float()))
    assert not found.failed and found.loss < 0.2 * found.nearest


@pytest.mark.parametrize(("least", "times"), [(0.0, 0), (-0.05, 1), (-0.5, 2), (-5.0, 3)])
def test_damping_grows_until_the_factor_exists(least, times):
    """A second moment whose least eigenvalue is below 0, as rounding can leave it."""
    basis = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)).double())[0]
    ends = torch.ones(16, dtype=torch.float64)
    ends[0], ends[1:] = least, (16 - least) / 15
    h = basis * ends @ basis.T
    found = sweep(torch.randn(4, 16), Format.parse("int4:g8:sym"), Inputs(h), settings=DOUBLE)
    assert found.times == times and found.damping == pytest.approx(0.01 * 10**times) and not found.failed


@pytest.mark.parametrize("bad", [-50.0, float("nan"), float("inf")])
def test_a_singular_moment_falls_back_and_says_so(bad):
    w, fmt = torch.randn(4, 16), Format.parse("int4:g8:asym")
    h = torch.eye(16)
    h[3, 4] = h[4, 3] = bad
    found = sweep(w, fmt, Inputs(h))
    assert found.failed == "the second moment of its inputs is singular" and found.kept == 4
    assert torch.equal(found.codes, codec.quantize(w, codec.choose(w, fmt), fmt))


def test_inputs_that_are_always_zero_do_not_erase_the_weight():
    w, fmt = torch.randn(4, 16), Format.parse("int4:g8:asym")
    found = sweep(w, fmt, Inputs(torch.zeros(16, 16)))
    assert found.failed == "no input was ever other than 0" and found.codes.unique().numel() > 4


@pytest.mark.parametrize("word", ["e2m1:g16:sym:m2", "nvfp4", "e2m1:g16:sym:m2plus"])
def test_outer_scales_must_be_known_first(word):
    fmt = Format.parse(word)
    assert is_static(fmt, Settings()) and is_static(Format.parse("e2m1:g16:sym:m1"), Settings())
    with pytest.raises(RecipeError, match=f"chosen on the way, with the scale kind {fmt.scale} .* leave static_groups"):
        sweep(torch.randn(4, 32), fmt, Inputs(torch.eye(32)), settings=Settings(static=False))
    with pytest.raises(RecipeError, match="with columns in another order"):
        is_static(Format.parse("int4:g16:asym"), Settings(static=False, act_order=True))
    assert not is_static(Format.parse("e2m1:g16:sym:m1"), Settings(static=False))


def test_scales_that_a_format_cannot_hold():
    with pytest.raises(NumericsError, match="too small for f16"):
        sweep(torch.full((2, 16), 1e-12), Format.parse("e2m1:g8:sym:f16"), Inputs(torch.eye(16)))


# -------------------------------------------------------------------------------------------- the float model's target


def streams(seed, rows, width, count, drift=0.2):
    """W, X and X̃: the float stream, which the quantized one follows with an error that depends on it."""
    w, float_x = layer(seed, rows, width, count)
    random = torch.Generator().manual_seed(seed + 1000)
    mix = torch.randn(width, width, generator=random, dtype=torch.float64) / width**0.5
    noise = torch.randn(count, width, generator=random, dtype=torch.float64)
    return w, float_x + drift * (float_x @ mix) + 0.3 * drift * noise, float_x


def moments(x, float_x):
    moved = float_x - x
    return Inputs(hessian(x), 2 / len(x) * moved.T @ x, hessian(moved))


def test_the_target_is_the_least_squares_solution():
    w, x, float_x = streams(20, 6, 24, 100)
    inputs = moments(x, float_x)
    for order in (torch.arange(24), torch.randperm(24, generator=torch.Generator().manual_seed(0))):
        found = factor(inputs.hessian[order][:, order], 0.01)
        target = w + float_target(w, inputs, found.upper, order)
        # ‖w X̃ - q X‖² 2/n + λ‖w - q‖² as one system for each row
        root = (2 / len(x)) ** 0.5
        system = torch.cat((root * x, found.damping**0.5 * torch.eye(24).double()))
        wanted = torch.cat((root * float_x @ w.T, found.damping**0.5 * w.T))
        torch.testing.assert_close(target, torch.linalg.lstsq(system, wanted).solution.T, rtol=1e-9, atol=1e-9)


def test_losses_are_those_of_the_outputs():
    w, x, float_x = streams(21, 6, 24, 100)
    q = w + 0.01 * torch.randn(6, 24, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(row_losses(w, q, moments(x, float_x)), output_losses(w, q, x, float_x))
    torch.testing.assert_close(row_losses(w, q, Inputs(hessian(x))), output_losses(w, q, x))


@formats(["int4:g16:asym", "e2m1:g16:sym:m2", "int3:g16:sym"])
def test_asymmetric_is_nearer_to_the_float_model(fmt):
    better_layers, ratio = 0, 0.0
    for seed in range(40):
        w, x, float_x = streams(seed, 8, 48, 300)
        plain = sweep(w, fmt, Inputs(hessian(x)), settings=DOUBLE)
        found = sweep(w, fmt, moments(x, float_x), settings=DOUBLE)
        losses = [float(output_losses(w, values(part, fmt), x, float_x).sum()) for part in (found, plain)]
        assert found.loss == pytest.approx(losses[0]) and found.loss <= found.nearest
        better_layers, ratio = better_layers + (losses[0] < losses[1]), ratio + losses[0] / losses[1] / 40
    assert better_layers == 40 and ratio < 0.5


def test_asymmetric_without_drift_is_plain():
    w, x, _ = streams(22, 8, 48, 300)
    fmt = Format.parse("int4:g16:asym")
    one, two = sweep(w, fmt, moments(x, x), settings=DOUBLE), sweep(w, fmt, Inputs(hessian(x)), settings=DOUBLE)
    assert torch.equal(one.codes, two.codes) and one.loss == pytest.approx(two.loss)


def test_asymmetric_with_an_input_that_only_the_float_model_has():
    """It is dead for the quantized model; what it adds to the float output goes to the inputs that go with it."""
    w, x, float_x = streams(23, 8, 48, 300)
    x = x.clone()
    x[:, 5] = 0
    fmt = Format.parse("int8:channel:sym")
    plain = sweep(w, fmt, Inputs(hessian(x)), settings=DOUBLE)
    found = sweep(w, fmt, moments(x, float_x), settings=DOUBLE)
    losses = [float(output_losses(w, values(part, fmt), x, float_x).sum()) for part in (found, plain)]
    assert found.dead == 1 and found.loss == pytest.approx(losses[0]) and losses[0] < losses[1]
