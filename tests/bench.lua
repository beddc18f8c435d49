-- What wrk sends, and how it reports the result, for bench.sh:
--   wrk ... -s bench.lua URL -- STORE OPERATION KEYS BYTES PORT...
-- STORE estoraje or etcd, OPERATION put, get or fill (each key once, then no more), KEYS how many, BYTES
-- of a value. Thread i talks to the i-th port, again from the first when there are more threads.

local threads = {}

function setup(thread)
   thread:set("index", #threads)
   table.insert(threads, thread)
end

local alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

local function base64(s)
   local out = {}
   for i = 1, #s, 3 do
      local a, b, c = s:byte(i, i + 2)
      local n = a * 65536 + (b or 0) * 256 + (c or 0)
      for place = 3, 0, -1 do
         local digit = math.floor(n / 64 ^ place) % 64
         local padding = (place == 1 and not b) or (place == 0 and not c)
         table.insert(out, padding and "=" or alphabet:sub(digit + 1, digit + 1))
      end
   end
   return table.concat(out)
end

local builders = {
   estoraje = {
      put = function(key, value) return wrk.format("PUT", "/" .. key, nil, value) end,
      get = function(key) return wrk.format("GET", "/" .. key) end,
   },
   etcd = {
      put = function(key, value)
         return wrk.format("POST", "/v3/kv/put", nil,
            '{"key":"' .. base64(key) .. '","value":"' .. base64(value) .. '"}')
      end,
      get = function(key)
         return wrk.format("POST", "/v3/kv/range", nil, '{"key":"' .. base64(key) .. '"}')
      end,
   },
}

-- All keys are as long as one another: a request is what stands before the key, the key, and the rest.
local width = 9

function init(arguments)
   local store, operation = arguments[1], arguments[2]
   keys = tonumber(arguments[3])
   local value = string.rep("0", tonumber(arguments[4]))
   local ports = #arguments - 4
   local port = arguments[5 + index % ports]
   wrk.thread.addr = wrk.lookup("127.0.0.1", port)[1]
   wrk.headers["Host"] = "127.0.0.1:" .. port
   fill = operation == "fill"
   local build = builders[store][fill and "put" or operation]
   encode = store == "etcd" and base64 or function(key) return key end
   local sample = encode(string.rep("@", width))
   local whole = build(string.rep("@", width), value)
   local at = whole:find(sample, 1, true)
   before, after = whole:sub(1, at - 1), whole:sub(at + #sample)
   count, answered, step = 0, 0, tonumber(os.getenv("THREADS"))
   mine = math.floor((keys - index + step - 1) / step)
   math.randomseed(index + 1)
   if fill then
      response = function()
         answered = answered + 1
         if answered >= mine then wrk.thread:stop() end
      end
   end
end

function request()
   local key = math.random(keys)
   if fill then
      key = count % mine * step + index + 1
      count = count + 1
   end
   return before .. encode(string.format("k%08d", key)) .. after
end

-- requests seconds p50_us p99_us errors
function done(summary, latency)
   local e = summary.errors
   local failed = e.status + e.connect + e.read + e.write + e.timeout
   io.write(string.format("RESULT %d %.3f %d %d %d\n", summary.requests, summary.duration / 1e6,
      latency:percentile(50), latency:percentile(99), failed))
end
