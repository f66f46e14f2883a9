// Programs that know nothing of Zazen read its images as what they are: ELF core files of AArch64.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { test } from 'node:test';
import { needsTool } from '../../test/tools.ts';
import { FRAME_BYTES } from '../abi/machine-memory.ts';
import {
  BASE, BASE_GFN, bankOf, fillFrame, frameOf, makeFolder, makeMachine, makeRequest, makeVcpu,
} from './test-images.ts';
import { writeImage } from './writer.ts';

const folder = makeFolder();
const machine = makeMachine(32 * FRAME_BYTES);
const path = join(folder, 'guest.core');
const vcpus = [makeVcpu(1, true), makeVcpu(2, true)];
fillFrame(machine, 3, 3);
fillFrame(machine, 4, 4);
await writeImage(makeRequest({
  path, machine, vcpus, banks: [bankOf(4096), bankOf(16, BASE_GFN + 2 ** 20)],
  vmcoreinfo: new TextEncoder().encode('OSRELEASE=6.1.0\nPAGESIZE=4096\n'),
  pages: [{ gfn: BASE_GFN + 100, count: 1, mfn: 3 }, { gfn: BASE_GFN + 2 ** 20 + 15, count: 1, mfn: 4 }],
  sections: [{ name: 'gic', bytes: new Uint8Array(1000) }],
}));

const run = (tool: string, args: readonly string[]) => {
  const { stdout, stderr, status } = spawnSync(tool, args, { encoding: 'utf8', env: { ...process.env, LC_ALL: 'C' } });
  return { stdout, stderr, status };
};

test('readelf finds nothing to complain of', (t) => {
  if (!needsTool(t, 'readelf', 'binutils')) return;
  const { stdout, stderr, status } = run('readelf', ['--all', '--wide', path]);
  assert.deepEqual([status, stderr], [0, '']);
  assert.match(stdout, /Type: +CORE/);
  assert.match(stdout, /Machine: +AArch64/);
  assert.match(stdout, /NOTE +0x/);
  assert.match(stdout, /LOAD +0x001000 0x0000000040000000 0x0000000040000000 0x1000000 0x1000000 RWE 0x1000/);
  assert.equal(stdout.match(/NT_PRSTATUS/g)!.length, 2);
  assert.equal(stdout.match(/NT_FPREGSET/g)!.length, 2);
  assert.match(stdout, /VMCOREINFO +0x/);
  assert.match(stdout, /Zazen +0x/);
});

test('gdb shows the registers of each vCPU, and memory', (t) => {
  if (!needsTool(t, 'gdb-multiarch')) return;
  const at = BASE + 100 * FRAME_BYTES + 16;
  const commands = ['info threads', 'thread 1', 'info registers', 'print/x $v3.d.u[1]', 'thread 2', 'info registers',
    `x/2gx ${at}`, `x/1gx ${BASE}`, `x/1gx ${BASE + 2 ** 32 + 16 * FRAME_BYTES - 8}`];
  const { stdout, stderr } = run('gdb-multiarch', ['--batch', '--nx', '-iex', 'set auto-load no',
    '-ex', `core-file ${path}`, ...commands.flatMap((command) => ['-ex', command])]);
  const hex = (number: bigint) => `0x${number.toString(16)}`;
  const registers = (text: string) => new Map([...text.matchAll(/^(\w+) +(0x[\da-f]+)/gm)].map((m) => [m[1]!, m[2]!]));
  const [, first, second] = stdout.split('[Switching to thread');
  assert.ok(first !== undefined && second !== undefined, stdout + stderr);
  for (const [text, vcpu] of [[first, vcpus[0]!], [second, vcpus[1]!]] as const) {
    const shown = registers(text);
    for (let n = 0; n < 31; n++) assert.equal(shown.get(`x${n}`), hex(vcpu.x[n]!), `x${n}\n${stdout}${stderr}`);
    assert.deepEqual([shown.get('sp'), shown.get('pc'), shown.get('cpsr')], [vcpu.sp, vcpu.pc, vcpu.pstate].map(hex));
  }
  const { v } = vcpus[0]!.fp!;
  const lane = new DataView(v.buffer, v.byteOffset).getBigUint64(16 * 3 + 8, true);
  assert.ok(first.includes(`= ${hex(lane)}`), first);
  const word = (mfn: number, offset: number) => {
    const frame = frameOf(machine, mfn);
    return new DataView(frame.buffer, frame.byteOffset).getBigUint64(offset, true).toString(16).padStart(16, '0');
  };
  assert.ok(second.includes(`0x40064010:\t0x${word(3, 16)}\t0x${word(3, 24)}`), second);
  assert.ok(second.includes('0x40000000:\t0x0000000000000000'), second);
  assert.ok(second.includes(`:\t0x${word(4, 4088)}`), second);
});
