// The differential oracle: what QEMU's user-mode emulator makes of short A64 code in a given state.
//
// It knows more than Zazen's guest is shown: FEAT_FP16, FEAT_DotProd, FEAT_DPB and FEAT_SSBS are in the modelled
// Neoverse N1 (the closest to our feature set that QEMU has: no pointer authentication, BTI, SVE, MTE, AFP or RPRES),
// so an instruction that is UNDEFINED for us may run here. It runs as a Linux process does: at EL0, with
// top-byte-ignore, without alignment checks on ordinary loads and stores or on SP, and with access to cache maintenance
// by address, CTR_EL0 and DCZID_EL0. Code under test must not make system calls, must not count on TPIDR_EL0 between
// cases, and should load through the PC only from its own words: around them lie the oracle's.

import { spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ZazenError } from '../../src/base/errors.ts';
import { PATIENCE_MILLIS } from '../patience.ts';
import type { CpuState } from './cpu-state.ts';
import {
  type FaultName, MAX_WORDS, RECORD_BYTES, buildExecutable, codeAddress, readRecord, writeRecord,
} from './qemu-driver.ts';
import { qemuUserPath } from './qemu-user.ts';

export { MAX_WORDS, SCRATCH_ADDRESS } from './qemu-driver.ts';
export type { FaultName } from './qemu-driver.ts';

export interface OracleCase {
  /** Instructions, 1 to MAX_WORDS; execution falls out of the end through NOPs. */
  words: readonly number[];
  /** State before the first one; not changed. Bits of FPCR that the feature set lacks must be zero. */
  state: CpuState;
}

export interface OracleResult {
  /** Address at which the case's first word ran, for code that depends on the PC. */
  codeAddress: bigint;
  /** State after the last instruction, or at the fault. */
  state: CpuState;
  /** Present if the case ended in a signal, or was still running after 0.1 to 0.2 s of CPU time. */
  fault?: { signal: FaultName; pc: bigint; address: bigint };
}

/** More cases than this are run in several processes, one after the other. */
const BATCH_CASES = 2048;

const CPU_MODEL = 'neoverse-n1';

export class QemuOracle {
  readonly #qemu: string;

  private constructor(qemu: string) {
    this.#qemu = qemu;
  }

  /** Finds or fetches QEMU. */
  static async start(): Promise<QemuOracle> {
    return new QemuOracle(await qemuUserPath());
  }

  /**
   * Runs the cases, each from its own state, and returns one result each, in order.
   * @throws RangeError for a case that is too long; ZazenError ZAZEN_ORACLE_FAILED if QEMU itself fails
   */
  async run(cases: readonly OracleCase[]): Promise<OracleResult[]> {
    const results: OracleResult[] = [];
    for (let at = 0; at < cases.length; at += BATCH_CASES) {
      for (const result of await this.#runBatch(cases.slice(at, at + BATCH_CASES))) results.push(result);
    }
    return results;
  }

  async #runBatch(cases: readonly OracleCase[]): Promise<OracleResult[]> {
    const directory = await mkdtemp(join(tmpdir(), 'zazen-oracle-'));
    try {
      const executable = join(directory, 'driver');
      const recordsFile = join(directory, 'cases');
      const records = new Uint8Array(cases.length * RECORD_BYTES);
      cases.forEach((testCase, index) => writeRecord(records, index, testCase.state));
      const code = buildExecutable(cases.map((c) => c.words), cases.map((c) => c.state));
      await writeFile(executable, code, { mode: 0o700 });
      await writeFile(recordsFile, records);
      const failure = await this.#runQemu(executable, recordsFile);
      // A copy, because views of 64-bit elements need its alignment.
      return collectResults(cases, new Uint8Array(await readFile(recordsFile)), failure);
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  }

  /** Why QEMU failed, or undefined. Reserving the address space keeps stray accesses away from QEMU's own memory. */
  #runQemu(executable: string, recordsFile: string): Promise<string | undefined> {
    const child = spawn(this.#qemu, ['-cpu', CPU_MODEL, '-R', '64G', executable, recordsFile], {
      stdio: ['ignore', 'ignore', 'pipe'],
      // A batch takes well under a second; this only ends a QEMU that hangs as a whole.
      timeout: PATIENCE_MILLIS,
      killSignal: 'SIGKILL',
    });
    let errors = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => errors += text);
    return new Promise((resolve, reject) => {
      child.once('error', reject);
      child.once('close', (status, signal) => {
        if (status === 0) resolve(undefined);
        else resolve(`QEMU ended with ${signal ?? `status ${status}`}: ${errors.trim() || 'no message'}`);
      });
    });
  }
}

function collectResults(
  cases: readonly OracleCase[], records: Uint8Array, failure: string | undefined,
): OracleResult[] {
  return cases.map(({ words }, index) => {
    const outcome = readRecord(records, index);
    if (outcome === undefined) {
      const code = words.map((word) => '0x' + word.toString(16).padStart(8, '0')).join(' ');
      throw new ZazenError('ZAZEN_ORACLE_FAILED', `case ${index} (${code}) did not finish: ${failure ?? 'no result'}`, {
        hint: `leave this code out of the differential tests if it makes a system call; at most ${MAX_WORDS} words`,
      });
    }
    const result: OracleResult = { codeAddress: BigInt(codeAddress(index)), state: outcome.state };
    if (outcome.fault !== undefined) {
      result.fault = { signal: outcome.fault, pc: outcome.faultPc, address: outcome.faultAddress };
    }
    return result;
  });
}
