"""What the driver owns and what belongs to transformers."""

import ast
import inspect

from transformers import Seq2SeqTrainer

from llamafactory.train import trainer as module
from llamafactory.train.trainer import CustomSeq2SeqTrainer


def private(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("_") and not name.startswith("__")}


def test_one_private_method_of_the_trainer_is_overridden_and_none_is_called():
    theirs = private(set(dir(Seq2SeqTrainer)))
    assert private(set(vars(CustomSeq2SeqTrainer))) & theirs == {"_save_checkpoint"}

    used = {node.attr for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Attribute)}
    assert private(used) & theirs == {"_save_checkpoint"}


def test_no_attribute_of_the_driver_is_also_one_of_the_trainer():
    trainer = inspect.getmodule(Seq2SeqTrainer.__mro__[1])
    theirs = {node.attr for node in ast.walk(ast.parse(inspect.getsource(trainer))) if isinstance(node, ast.Attribute)}
    source = inspect.cleandoc(inspect.getsource(CustomSeq2SeqTrainer.__init__))
    ours = {
        target.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self"
    }
    assert ours == {"meter", "parts", "interrupt", "diagnosis", "helpers", "replay", "model_card", "_eval_pass"}
    assert not ours & theirs
