// Translates and runs straight lines of guest code with the second back end (straight-line-machine.ts), on a test
// machine of its own with the MMU off. The slow paths are those of the product.

import { decode } from '../../src/a64/table.ts';
import { operandsOf } from '../../src/a64/row.ts';
import type { Fields, Row } from '../../src/a64/row.ts';
import { computeNames, trapNames } from '../../src/a64/slow.ts';
import { MACHINE_HEADER } from '../../src/abi/machine-memory.ts';
import { vcpuRecord } from '../../src/abi/vcpu.ts';
import { computeHandlers } from '../../src/cpu/compute/index.ts';
import { computeSignature, emittedCalls, importObject, trapSignature } from '../../src/cpu/emitted-calls.ts';
import type { EmittedCallHandlers } from '../../src/cpu/emitted-calls.ts';
import { GUEST_BASE, createTestMachine } from '../../src/cpu/test-machine.ts';
import type { TestMachine } from '../../src/cpu/test-machine.ts';
import { TrapHandlers } from '../../src/cpu/traps.ts';
import type { Callable, Signature } from '../../src/wasm/function.ts';
import { ModuleBuilder } from '../../src/wasm/module.ts';
import { StraightLineMachine } from './straight-line-machine.ts';
import type { StraightLineContext } from './straight-line-machine.ts';

const at = vcpuRecord.at;

type Block = (vcpu: number) => void;

export class StraightLineRunner {
  readonly test: TestMachine;
  readonly #addressType: 'i32' | 'i64';
  readonly #imports: WebAssembly.Imports;

  constructor(addressType: 'i32' | 'i64') {
    this.#addressType = addressType;
    this.test = createTestMachine({ addressType });
    const { engine, machine } = this.test;
    engine.requestExit('host'); // traps and faults stay out of the interpreter's code
    const never = (): never => { throw new Error('a call of the interpreter'); };
    const handlers: EmittedCallHandlers = {
      decode: never, fetch: never,
      slowLoad: (address, low, high, size) => engine.data.load(engine.vcpu(address), low, high, size),
      slowStore: (address, low, high, size) => engine.data.store(engine.vcpu(address), low, high, size),
      fillTlb: (address, low, high, size, isWrite) =>
        engine.data.fill(engine.vcpu(address), low, high, size, isWrite !== 0),
      traps: new TrapHandlers(engine).table(),
      compute: computeHandlers(machine),
    };
    const table = new WebAssembly.Table({ element: 'anyfunc', initial: 1 });
    this.#imports = importObject(machine.memory, table, handlers);
  }

  /** Runs from the PC until it is outside of `start` … `start + sizeBytes`. @returns the number of blocks. */
  run(start: bigint, sizeBytes: number): number {
    const { vcpu } = this.test;
    for (let blocks = 0; blocks < 1000; blocks++) {
      const offset = vcpu.get64(at.pcBase) - start;
      if (offset < 0n || offset >= BigInt(sizeBytes)) return blocks;
      vcpu.set32(at.record, 0);
      this.#translate(start + offset, (sizeBytes - Number(offset)) / 4)(vcpu.address);
    }
    throw new Error('the code does not come to an end');
  }

  #translate(pc: bigint, count: number): Block {
    const { machine, ram } = this.test;
    const pages = machine.parameters.sizeBytes / 65536;
    const signature: Signature = { params: ['i32'], results: [] };
    const module = new ModuleBuilder(signature, { addressType: this.#addressType, minPages: 1, maxPages: pages });
    const context = declareImports(module, this.#addressType);
    const f = module.function(signature);
    module.export('block', f);
    const view = new DataView(ram.buffer, ram.byteOffset + Number(pc) - GUEST_BASE);
    const line = Array.from({ length: count }, (_, i) => {
      const found = decode(view.getUint32(4 * i, true));
      return found && { ...found, operands: operandsOf(found.row, found.fields) };
    });
    const m = new StraightLineMachine(f, context, line.flatMap(item => item ? [item.operands] : []));
    for (const item of line) {
      const goesOn = m.instruction(pc, item?.row.fp ?? false, () => {
        if (item) item.row.meaning(m, item.operands, staticsOf(item.row, item.fields));
        else m.undefined();
      });
      if (!goesOn) break;
      pc += 4n;
    }
    m.finish(pc);
    const instance = new WebAssembly.Instance(new WebAssembly.Module(module.encode()), this.#imports);
    return instance.exports['block'] as Block;
  }
}

/** What a meaning may know about its fields. */
function staticsOf(row: Row, fields: Fields): Fields {
  return Object.fromEntries(row.statics.map(name => [name, fields[name]!]));
}

function declareImports(module: ModuleBuilder, addressType: 'i32' | 'i64'): StraightLineContext {
  const functions = <N extends string>(names: readonly N[], prefix: string, signature: Signature) => {
    const entries = names.map(name => [name, module.importFunction(`${prefix}_${name}`, signature)]);
    return Object.fromEntries(entries) as Record<N, Callable>;
  };
  return {
    addressType,
    slowLoad: module.importFunction('slowLoad', emittedCalls.slowLoad),
    slowStore: module.importFunction('slowStore', emittedCalls.slowStore),
    fillTlb: module.importFunction('fillTlb', emittedCalls.fillTlb),
    traps: functions(trapNames, 'trap', trapSignature),
    compute: functions(computeNames, 'compute', computeSignature),
    pairLockAddress: MACHINE_HEADER.at.pairLock,
  };
}
