import numpy as np

from experiments.training.data import Data, hold_out


def test_the_last_examples_are_held_out_and_the_test_stays():
    numbers = np.arange(40)
    whole = Data({"images": numbers, "labels": -numbers}, test=np.zeros(3))
    held = hold_out(whole, 0.1)
    np.testing.assert_array_equal(held.train["images"], numbers[:36])
    np.testing.assert_array_equal(held.validation["images"], numbers[36:])
    np.testing.assert_array_equal(held.validation["labels"], -numbers[36:])
    assert held.test is whole.test
