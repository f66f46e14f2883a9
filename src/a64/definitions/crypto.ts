// Cryptographic AES and SHA (Arm ARM C4.1.96). PMULL stands with the three different.

import { v128 } from '../../wasm/vector.ts';
import { group } from '../row.ts';
import { decryptRound, encryptRound, inverseMixColumns, mixColumns } from '../simd/aes.ts';
import { threeVectors, twoVectors } from '../simd/forms.ts';
import {
  choose, majority, parity, sha1FixedRotate, sha1Rounds, sha1ScheduleEnd, sha1ScheduleStart, sha256Rounds,
  sha256ScheduleEnd, sha256ScheduleStart,
} from '../simd/sha.ts';

const { name, rows, inst } = group('crypto');

for (const [op, opcode, round] of [['AESE', '00100', encryptRound], ['AESD', '00101', decryptRound]] as const) {
  inst(op, `01001110 00 10100 ${opcode} 10 Rn:5 Rd:5`, {
    fp: true,
    operands: twoVectors,
    meaning: (m, o) => m.setQ(o.d, round(m.f, v128.xor(m.q(o.d), m.q(o.n)))),
  });
}
for (const [op, opcode, mix] of [['AESMC', '00110', mixColumns], ['AESIMC', '00111', inverseMixColumns]] as const) {
  inst(op, `01001110 00 10100 ${opcode} 10 Rn:5 Rd:5`, {
    fp: true,
    operands: twoVectors,
    meaning: (m, o) => m.setQ(o.d, mix(m.f, m.q(o.n))),
  });
}

for (const [op, opcode, round] of [
  ['SHA1C', '000', choose], ['SHA1P', '001', parity], ['SHA1M', '010', majority],
] as const) {
  inst(op, `01011110 00 0 Rm:5 0 ${opcode} 00 Rn:5 Rd:5`, {
    fp: true,
    operands: threeVectors,
    meaning: (m, o) => m.setQ(o.d, sha1Rounds(m.f, round, m.q(o.d), m.s(o.n), m.q(o.m))),
  });
}
inst('SHA1SU0', '01011110 00 0 Rm:5 0 011 00 Rn:5 Rd:5', {
  fp: true,
  operands: threeVectors,
  meaning: (m, o) => m.setQ(o.d, sha1ScheduleStart(m.f, m.q(o.d), m.q(o.n), m.q(o.m))),
});
inst('SHA1SU1', '01011110 00 10100 00001 10 Rn:5 Rd:5', {
  fp: true,
  operands: twoVectors,
  meaning: (m, o) => m.setQ(o.d, sha1ScheduleEnd(m.f, m.q(o.d), m.q(o.n))),
});
inst('SHA1H', '01011110 00 10100 00000 10 Rn:5 Rd:5', {
  fp: true,
  operands: twoVectors,
  meaning: (m, o) => m.setS(o.d, sha1FixedRotate(m.s(o.n))),
});

inst('SHA256H', '01011110 00 0 Rm:5 0 100 00 Rn:5 Rd:5', {
  fp: true,
  operands: threeVectors,
  meaning: (m, o) => m.setQ(o.d, sha256Rounds(m.f, m.q(o.d), m.q(o.n), m.q(o.m), 'abcd')),
});
// Here the destination is efgh, and abcd is the other operand.
inst('SHA256H2', '01011110 00 0 Rm:5 0 101 00 Rn:5 Rd:5', {
  fp: true,
  operands: threeVectors,
  meaning: (m, o) => m.setQ(o.d, sha256Rounds(m.f, m.q(o.n), m.q(o.d), m.q(o.m), 'efgh')),
});
inst('SHA256SU0', '01011110 00 10100 00010 10 Rn:5 Rd:5', {
  fp: true,
  operands: twoVectors,
  meaning: (m, o) => m.setQ(o.d, sha256ScheduleStart(m.f, m.q(o.d), m.q(o.n))),
});
inst('SHA256SU1', '01011110 00 0 Rm:5 0 110 00 Rn:5 Rd:5', {
  fp: true,
  operands: threeVectors,
  meaning: (m, o) => m.setQ(o.d, sha256ScheduleEnd(m.f, m.q(o.d), m.q(o.n), m.q(o.m))),
});

export default { name, rows };
