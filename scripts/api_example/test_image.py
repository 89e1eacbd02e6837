"""Ask about an image through the API; the file is sent in the request.

llamafactory-cli api model_name_or_path=Qwen/Qwen2.5-VL-3B-Instruct template=qwen2_vl
python scripts/api_example/test_image.py photo.jpg "What is in this picture?"
"""

import argparse
import base64
import mimetypes
import sys
from pathlib import Path

from client import connect, first_model
from openai import OpenAI, OpenAIError


def ask(client: OpenAI, model: str, image: Path, question: str) -> str:
    """Send the image as a data URL."""
    kind = mimetypes.guess_type(image.name)[0] or "image/png"
    url = f"data:{kind};base64,{base64.b64encode(image.read_bytes()).decode()}"
    answer = client.chat.completions.create(
        model=model,
        messages=[
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}],
            }
        ],
    )
    return answer.choices[0].message.content or ""


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("question", nargs="?", default="Describe this picture.")
    given = parser.parse_args(words)
    try:
        client = connect()
        print(ask(client, first_model(client), given.image, given.question))
    except (OpenAIError, OSError) as error:
        print(f"No answer: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
