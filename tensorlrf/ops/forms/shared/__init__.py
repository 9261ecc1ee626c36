"""Stages that several forms share: of convolutions, of lookups, and kernels of ours."""
