"""Operations: one file each, any rank, the rank read from the tensors."""
