import pytest
from torch import nn

from edgeailite.quantization import QATFxModule
from edgeailite.quantization.graph.modes import in_mode, modes_kept


def _modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("training", [False, True])
def test_all_modules_are_in_the_mode_and_go_back_one_by_one(training):
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1).eval(), nn.Sequential(nn.ReLU()))
    before = _modes(model)
    with in_mode(model, training):
        assert set(_modes(model)) == {training}
    assert _modes(model) == before


def test_modes_come_back_after_an_error():
    model = nn.Sequential(nn.Dropout(), nn.ReLU().eval())

    def fail():
        with modes_kept(model):
            model.eval()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert _modes(model) == [True, True, False]


def test_a_wrapper_counts_no_epoch():
    wrapper = QATFxModule(nn.Sequential(nn.Conv2d(1, 1, 1)), total_epochs=4).train()
    with in_mode(wrapper, training=False):
        assert not wrapper.training
    assert wrapper.training
    assert wrapper.epoch == 0
