"""The model as Composer trains it."""

OTHERS = """\
import sys
from itt_composer.models import IttConfig, IttForCausalLM
from itt_composer.models.composer_model import ComposerItt
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
ComposerItt(IttForCausalLM(IttConfig(vocab_size=9, num_hidden_layers=2, **sizes)))
print("transformers.models.gemma" in sys.modules, "torch._inductor.compile_fx" in sys.modules)
"""


def test_wrapping_the_model_imports_neither_other_models_nor_the_compiler(fork_server, tmp_path):
    (tmp_path / "wrap.py").write_text(OTHERS)
    result = fork_server.run(tmp_path / "wrap.py")
    assert result.stdout.split() == ["False", "False"], result.stderr
