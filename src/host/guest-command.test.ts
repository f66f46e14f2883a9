import assert from 'node:assert/strict';
import { Duplex } from 'node:stream';
import { buffer, text } from 'node:stream/consumers';
import { test } from 'node:test';
import { exitMarker, startMarker } from '../guest/init-script.ts';
import { attachGuestCommand } from './guest-command.ts';

const NONCE = 'ab12';
const START = `${startMarker}${NONCE}\n`;
const EXIT = (status: number): string => `${exitMarker}${NONCE} ${status}\n`;

/** A console whose guest half the test plays. */
class FakeConsole extends Duplex {
  typed = '';
  onTyped: (() => void) | undefined;

  say(words: string): void {
    this.push(Buffer.from(words, 'latin1'));
  }

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: () => void): void {
    this.typed += chunk.toString('latin1');
    this.onTyped?.();
    done();
  }
}

test('output, log, input and status are told apart', async () => {
  const console = new FakeConsole();
  const command = attachGuestCommand(console, { nonce: NONCE, tty: 'pipe' });
  command.input.end('2\n');
  console.say('booting\n');
  assert.equal(console.typed, '', 'nothing is typed before the command runs');
  const typed = new Promise<void>((resolve) => {
    console.onTyped = () => console.typed.includes('\x04') && resolve();
  });
  console.say(START);
  await command.started;
  await typed;
  assert.equal(console.typed.replaceAll('\x04', ''), '2\n');
  assert.ok(console.typed.startsWith('2\n\x04'));
  console.say(`four\n${EXIT(4)}power down\n`);
  console.push(null);
  assert.deepEqual(await Promise.all([text(command.output), text(command.log), command.result]),
    ['four\n', 'booting\npower down\n', { status: 4 }]);
});

test('a guest that goes early is an error with its last words', async () => {
  const console = new FakeConsole();
  const command = attachGuestCommand(console, { nonce: NONCE, tty: 'pipe' });
  console.say('[ 0.1] Kernel panic - not syncing: no init\r\n[ 0.2] ---[ end\r\n');
  console.push(null);
  await assert.rejects(command.started, { code: 'ZAZEN_EXEC_LOST', message: /before the command began.*Kernel panic/ });
  await assert.rejects(command.result, { code: 'ZAZEN_EXEC_LOST' });
  assert.equal(await text(command.output), '');
});

test('a destroyed console ends the command, and input to it is dropped', async () => {
  const console = new FakeConsole();
  const command = attachGuestCommand(console, { nonce: NONCE, tty: 'pipe' });
  console.say(`${START}half`);
  await command.started;
  console.destroy();
  await assert.rejects(command.result, { code: 'ZAZEN_EXEC_LOST', message: /before the command ended/ });
  assert.equal(await text(command.output), 'half');
  await new Promise<void>((resolve) => { command.input.end('late', resolve); });
});

test('a slow reader of the output stops the console, an absent reader of the log does not', async () => {
  const console = new FakeConsole();
  const command = attachGuestCommand(console, { nonce: NONCE, tty: 'raw' });
  const block = Buffer.alloc(64 * 1024, 0x61);
  for (let i = 0; i < 64; i++) console.push(block);
  console.say(START);
  await command.started;
  assert.equal(console.isPaused(), false);
  for (let i = 0; i < 8; i++) console.push(block);
  console.say(EXIT(0));
  console.push(null);
  while (!console.isPaused()) await new Promise((resolve) => { setImmediate(resolve); });
  assert.ok(command.output.readableLength < 8 * block.length);
  assert.equal((await buffer(command.output)).length, 8 * block.length);
  assert.deepEqual(await command.result, { status: 0 });
});
