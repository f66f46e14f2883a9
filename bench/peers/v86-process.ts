// v86 in a process of its own: `node v86-process.ts GUEST`, where GUEST is a `V86Machine` in JSON. The guest's serial port is
// standard input and output. It runs until it is killed, or its standard input ends.

import { readFileSync } from 'node:fs';
import type { V86Machine } from './v86.ts';

/** As much of the package's types as is used here: it need not be installed. */
interface V86 {
  add_listener(event: 'serial0-output-byte', listener: (byte: number) => void): void;
  serial0_send(text: string): void;
}
type V86Class = new (options: object) => V86;

const machine = JSON.parse(process.argv[2]!) as V86Machine;
const file = (path: string): { buffer: ArrayBuffer } => ({ buffer: new Uint8Array(readFileSync(path)).buffer });
const { V86 } = await import(machine.modulePath) as { V86: V86Class };
const emulator = new V86({
  wasm_path: machine.wasmPath,
  memory_size: machine.memoryMib << 20,
  vga_memory_size: 1 << 20,
  bios: file(machine.biosPath),
  vga_bios: file(machine.vgaBiosPath),
  bzimage: file(machine.kernelPath),
  initrd: file(machine.initramfsPath),
  cmdline: machine.cmdline,
  disable_speaker: true,
  autostart: true,
});

let bytes: number[] = [];
function flush(): void {
  process.stdout.write(Buffer.from(bytes));
  bytes = [];
}
emulator.add_listener('serial0-output-byte', byte => {
  if (bytes.length === 0) setImmediate(flush);
  bytes.push(byte);
});
process.stdin.setEncoding('latin1').on('data', (text: string) => emulator.serial0_send(text)).on('end', () => process.exit());
