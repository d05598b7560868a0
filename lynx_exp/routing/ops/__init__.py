"""Operations over the rows of lanes that policies are made of. Needs torch only."""
