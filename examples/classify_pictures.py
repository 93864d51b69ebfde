"""Classify pictures, and print the stage and the best classes of each.

Run it with a bundle and some pictures:
    python examples/classify_pictures.py bundle cat.jpg dog.jpg --eta 0.6
"""

from __future__ import annotations

import argparse

import sacvit_deploy


def main() -> None:
    """Print the three best classes of every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--eta", type=float, help="exit threshold; default: the bundle's")
    arguments = parser.parse_args()

    with sacvit_deploy.load(arguments.bundle, eta=arguments.eta) as pipeline:
        results = pipeline(arguments.pictures)
    for result in results:
        print(f"{result.image}: {result.stage}")
        for _, label, probability in result.top5[:3]:
            print(f"  {probability:6.1%}  {label}")
        if result.target_tokens is not None:
            print(f"  looked again at the coarse tokens {sorted(result.target_tokens)}")


if __name__ == "__main__":
    main()
