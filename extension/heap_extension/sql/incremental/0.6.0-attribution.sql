ALTER TYPE heap._kernel_totals ADD ATTRIBUTE value numeric;
