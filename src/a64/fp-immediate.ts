// The 8-bit floating-point immediate of FMOV (Arm ARM: VFPExpandImm).

/** The encoding, of 32 or 64 bits, of the number that a:bcdefgh stands for: ±(16 … 31)/16 × 2^(-3 … 4). */
export function expandFpImmediate(imm8: number, bits: 32 | 64): bigint {
  const exponentBits = bits === 32 ? 8 : 11;
  const fractionBits = BigInt(bits - exponentBits - 1);
  const b = (imm8 >> 6) & 1;
  // NOT(b), then b repeated, then cd.
  const repeated = b ? (1 << (exponentBits - 3)) - 1 : 0;
  const exponent = ((b ^ 1) << (exponentBits - 1)) | (repeated << 2) | ((imm8 >> 4) & 3);
  const sign = BigInt(imm8 >> 7) << BigInt(bits - 1);
  return sign | (BigInt(exponent) << fractionBits) | (BigInt(imm8 & 15) << (fractionBits - 4n));
}
