"""Score a file of predictions: mean ROUGE-1, ROUGE-2, ROUGE-L and BLEU-4, as `predict_with_generate` does.

    python scripts/eval_bleu_rouge.py saves/run/generated_predictions.jsonl

Writes predictions_score.json beside the working folder's files, or to --save-name.
"""

import argparse
import json
import sys
from pathlib import Path

from llamafactory.extras.errors import UserError
from llamafactory.train.sft.metric import text_similarity


def score(file: Path) -> dict[str, float]:
    """Return the scores of a file of {"predict", "label"} lines."""
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not records or any("predict" not in record or "label" not in record for record in records):
        raise UserError(f"{file} must hold lines with `predict` and `label`, as generated_predictions.jsonl does.")
    return text_similarity(records)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("filename", type=Path)
    parser.add_argument("--save-name", type=Path, default=Path("predictions_score.json"))
    given = parser.parse_args(words)
    try:
        scores = score(given.filename)
    except (UserError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    given.save_name.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    print("\n".join(f"{name}: {value:.4f}" for name, value in scores.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
