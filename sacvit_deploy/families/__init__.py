"""The families of networks this package knows, one module each.

A family is a published design: SAC-ViT, CF-ViT, the dense ViT they are compared with. Its module
says everything that sets it apart, as one `Family`. To add a family, add its module, the torch code
that it names, and a line here.
"""

from __future__ import annotations

from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.cf_vit import CF_VIT
from sacvit_deploy.families.family import Family
from sacvit_deploy.families.sac_vit import SAC_VIT
from sacvit_deploy.families.vit import VIT

__all__ = ["FAMILIES", "Family", "family_named"]

FAMILIES: dict[str, Family] = {family.name: family for family in (SAC_VIT, CF_VIT, VIT)}


def family_named(name: object) -> Family:
    """The family of that name.

    Raises:
        ConfigError: There is none.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(f"family is {name!r}.", f"Make it one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]
