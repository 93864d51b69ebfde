"""The families of networks, one module each.

A family is a published design, such as SAC-ViT, or the dense ViT it is compared with. Its module
describes it as one `Family`. To add a family, add its module, the torch code it names, and a
line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sacvit_deploy.decode import shown
from sacvit_deploy.errors import ConfigError
from sacvit_deploy.families.cf_lv_vit import CF_LV_VIT
from sacvit_deploy.families.cf_vit import CF_VIT
from sacvit_deploy.families.lf_vit import LF_VIT
from sacvit_deploy.families.lv_vit import LV_VIT
from sacvit_deploy.families.sac_vit import SAC_VIT
from sacvit_deploy.families.stvit import STVIT
from sacvit_deploy.families.stvit_r import STVIT_R
from sacvit_deploy.families.svit import SVIT
from sacvit_deploy.families.svit_adapter import SVIT_ADAPTER
from sacvit_deploy.families.swin import SWIN
from sacvit_deploy.families.vit import VIT

if TYPE_CHECKING:
    from sacvit_deploy.families.family import Family


_ALL = (SAC_VIT, CF_VIT, LF_VIT, CF_LV_VIT, STVIT, SVIT, STVIT_R, SVIT_ADAPTER, VIT, LV_VIT, SWIN)
FAMILIES = {family.name: family for family in _ALL}


def family_named(name: object) -> Family:
    """Find a family by its name; `ConfigError` if there is none."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(f"family is {shown(name)}.", f"Make it one of {', '.join(FAMILIES)}.")
    return FAMILIES[name]
