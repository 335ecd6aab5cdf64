"""What an update is made of: steps that leave out what is not finite, agreement before it begins, signals."""

import copy
import os
import signal

import pytest
import torch
from accelerate import Accelerator

from wavtrain import InputError
from wavtrain.accumulation import Agreement, FiniteUpdates, Interruption, synchronised_if

RATE = 0.1


class Updates:
    """A small model with the optimizer of the training script, prepared by accelerate."""

    def __init__(self, skipped=0, most_in_a_row=3):
        torch.manual_seed(0)
        accelerator, model = Accelerator(cpu=True), torch.nn.Linear(3, 2)
        groups = [{"params": [model.weight], "weight_decay": 0.5}, {"params": [model.bias], "weight_decay": 0.0}]
        self.model, self.optimizer = accelerator.prepare(model, torch.optim.AdamW(groups, fused=True))
        self.finite = FiniteUpdates(self.optimizer, skipped, most_in_a_row, accelerator.device)

    def update(self, gradient, rate=RATE):
        for parameter in self.model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        self.finite.step(torch.nn.utils.get_total_norm([each.grad for each in self.model.parameters()]), rate)

    def state(self):
        """Weights, Adam's moments and its count of steps."""
        moments = [self.optimizer.state[each] for each in self.model.parameters()]
        return copy.deepcopy([list(self.model.parameters()), moments])


def assert_equal(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    updates = Updates()
    updates.update(0.3)
    before = updates.state()
    updates.update(bad)
    assert_equal(updates.state(), before)
    assert updates.finite.skipped() == 1
    assert not any(each.grad is not None and each.grad.any() for each in updates.model.parameters())


@pytest.mark.parametrize("gradients", [[0.3, "bad", -0.2, "bad", "bad", 0.1], ["bad", 0.3, -0.2, 0.1]], ids=str)
def test_finite_updates_are_adamw_as_if_the_others_had_not_been(gradients):
    updates, good = Updates(), [each for each in gradients if each != "bad"]
    for gradient in gradients:
        updates.update(float("nan") if gradient == "bad" else gradient)
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    plain = torch.optim.AdamW([{"params": [model.weight], "weight_decay": 0.5},
                               {"params": [model.bias], "weight_decay": 0.0}], lr=RATE)
    for gradient in good:
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        plain.step()
    torch.testing.assert_close(list(updates.model.parameters()), list(model.parameters()), rtol=1e-6, atol=1e-7)
    assert updates.finite.skipped() == len(gradients) - len(good)
    assert {int(each["step"]) for each in updates.optimizer.state.values()} == {len(good)}


def test_the_learning_rate_of_an_update_is_that_of_every_group():
    updates = Updates()
    before = updates.state()[0]
    updates.update(1.0, rate=0.0)
    assert_equal(updates.state()[0], before)
    updates.update(1.0, rate=0.25)
    assert [group["lr"] for group in updates.optimizer.param_groups] == [0.25, 0.25]


def test_too_many_in_a_row_end_the_run():
    updates = Updates(skipped=5, most_in_a_row=3)
    for gradient in (float("nan"), float("nan"), 1.0, float("nan"), float("nan")):
        updates.update(gradient)
    assert updates.finite.skipped() == 9  # with those before the run was resumed; never three in a row
    updates.update(float("inf"))
    with pytest.raises(InputError, match=r"the last 3 updates .* not finite.* --learning_rate"):
        updates.finite.skipped()


def test_one_process_agrees_with_itself():
    agreement = Agreement(Accelerator(cpu=True))
    total, stop = agreement.total(120, stop=False)
    assert (int(total), stop) == (120, False)
    total, stop = agreement.total(0, stop=True)
    assert (int(total), stop) == (1, True)  # a divisor; nothing is masked, so the loss is 0


def test_gradients_travel_with_the_last_micro_batch_alone():
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(torch.nn.Linear(2, 1))
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    for number, value in enumerate(values, start=1):
        with synchronised_if(number == len(values), accelerator, model):
            accelerator.backward(model(value).sum())
    assert model.weight.grad.tolist() == [[9.0, 12.0]]  # the sum over the window, rescaled by nobody


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_wish(number, capsys):
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    with Interruption() as interruption:
        assert not interruption.requested
        os.kill(os.getpid(), number)
        assert interruption.requested
        assert interruption.signal == number
    assert "a checkpoint is saved" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == before


def interrupt(*numbers):
    with Interruption():
        for number in numbers:
            os.kill(os.getpid(), number)


def test_a_second_ctrl_c_ends_at_once():
    with pytest.raises(KeyboardInterrupt):
        interrupt(signal.SIGINT, signal.SIGINT)


def test_a_second_sigterm_still_waits_for_the_checkpoint():
    interrupt(signal.SIGTERM, signal.SIGTERM)  # as schedulers send them, seconds apart


def test_after_the_loop_signals_are_what_they_were():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption() as interruption:
        assert signal.getsignal(signal.SIGINT) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert not interruption.requested
