"""What the processor at hand does well."""

from __future__ import annotations

from functools import cache

import torch


@cache
def profits_from_bfloat16() -> bool:
    """Whether it computes bfloat16 itself rather than through float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
