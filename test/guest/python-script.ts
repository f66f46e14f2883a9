// What python3 computes in the guest: prints one line of JSON. The numbers are printed by repr, which round-trips.

export interface PythonResults {
  /** Made of operations whose result IEEE 754 defines to the last bit. */
  exact: Record<string, number | number[]>;
  /** By `NAME ARGUMENT`, names as JavaScript's Math has them. */
  functions: Record<string, number>;
  integers: string[];
  hashes: string[];
  packed: string;
  sorted: number[];
  text: string;
  special: string[];
  /** What threads counted together under a lock, and the sum of what one handed to another. */
  threads: number[];
}

export const pythonScript = `
import hashlib, json, math, queue, struct, threading

def leibniz():
    total = 0.0
    for k in range(2000):
        total += (-1 if k % 2 else 1) / (2 * k + 1)
    return total

def zeta():
    total = 0.0
    for k in range(1, 2001):
        total += 1 / (k * k)
    return total

def logistic():
    x = 0.3
    for _ in range(1000):
        x = 3.9 * x * (1 - x)
    return x

def euler():
    total = term = 1.0
    for k in range(1, 30):
        term /= k
        total += term
    return total

def error_of(work):
    try:
        work()
    except Exception as error:
        return type(error).__name__

def in_threads(*works):
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

lock, count, total = threading.Lock(), 0, 0

def add():
    global count
    for _ in range(1500):
        with lock:
            count += 1

in_threads(add, add, add, add)
handed = queue.Queue(3)

def consume():
    global total
    while (number := handed.get()) is not None:
        total += number

in_threads(consume, lambda: [handed.put(number) for number in [*range(300), None]])

exact = {
    'leibniz': leibniz(), 'zeta': zeta(), 'logistic': logistic(), 'e': euler(), 'third': 1 / 3, 'tenth': 0.1 + 0.2,
    'root': math.sqrt(2), 'denormal': 5e-324 * 3, 'tiny': 2.2250738585072014e-308 / 3,
    'large': 1.7976931348623157e308 / 7, 'float32': struct.unpack('<f', struct.pack('<f', 0.1))[0],
    'rounded': [round(x) for x in (0.5, 1.5, 2.5, -1.5, -0.5)], 'remainder': math.fmod(5.3, 0.7),
    'floor': [math.floor(-2.5), math.floor(2.5), math.ceil(-2.5), math.ceil(2.5)],
}
names = {'sin': math.sin, 'cos': math.cos, 'tan': math.tan, 'atan': math.atan, 'exp': math.exp, 'log': math.log,
    'cbrt': math.cbrt, 'sinh': math.sinh, 'asinh': math.asinh}
functions = {f'{name} {x}': f(x) for name, f in names.items() for x in (0.1, 0.75, 1.0, 2.5, 10.0)}
factorial = math.factorial(200)
data = b'zazen' * 1000
print(json.dumps({
    'exact': exact,
    'functions': functions,
    'integers': [str(n) for n in (factorial, 7 ** 300, pow(3, 65537, 2 ** 127 - 1), factorial // 12345678901234567890,
        factorial % 12345678901234567890, -(10 ** 40) // 7)],
    'hashes': [hashlib.new(name, data).hexdigest() for name in ('md5', 'sha1', 'sha256', 'sha512', 'sha3_256', 'blake2b')],
    'packed': struct.pack('<dfqIh', math.pi, 1.5, -5, 0xdeadbeef, -2).hex(),
    'sorted': sorted((i * 7919) % 503 for i in range(500)),
    'text': json.loads(json.dumps('Žižkov ☃ 𝄞 "\\\\\\n')),
    'threads': [count, total],
    'special': [repr(1e308 * 10), repr(-1e308 * 10), repr(math.inf - math.inf), repr(-1 / math.inf),
        error_of(lambda: 1 / 0), error_of(lambda: math.exp(1000)), math.pi.hex()],
}))
`.trim();
