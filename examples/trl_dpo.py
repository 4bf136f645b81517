"""TRL's DPO trainer on the op: one line. A tiny model and a letter tokenizer stand in for yours."""

import tempfile

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from rao_kernels.integrations import trl as rao_trl


def letter_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {
        token: i for i, token in enumerate(["<pad>", "</s>", *"abcdefghijklmnopqrstuvwxyz ?"])
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


def main() -> None:
    tokenizer = letter_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
    )
    pairs = [{"prompt": "say hi ", "chosen": "hello", "rejected": "no"}] * 8

    rao_trl.enable()  # the one line
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        trainer = DPOTrainer(
            LlamaForCausalLM.from_pretrained(folder),
            args=DPOConfig(
                folder, max_steps=4, use_cpu=True, bf16=False, report_to=[], save_strategy="no"
            ),
            train_dataset=Dataset.from_list(pairs),
            processing_class=tokenizer,
        )
        result = trainer.train()
    rao_trl.disable()
    print(f"loss {result.training_loss:.3f}")


if __name__ == "__main__":
    main()
