-- What wrk sends, and how it tells what came of it, for bench.sh:
--   wrk ... -s bench.lua URL -- STORE OPERATION KEYS PORT...
-- STORE estoraje or etcd, OPERATION put, get or fill (each key once, then it stops), KEYS how many.
-- Thread i talks to the i-th port, again from the first when there are more threads.

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

local value = string.rep("0123456789", 10) -- 100 bytes

local builders = {
   estoraje = {
      put = function(key) return wrk.format("PUT", "/" .. key, nil, value) end,
      get = function(key) return wrk.format("GET", "/" .. key) end,
   },
   etcd = {
      put = function(key)
         return wrk.format("POST", "/v3/kv/put", nil,
            '{"key":"' .. base64(key) .. '","value":"' .. base64(value) .. '"}')
      end,
      get = function(key)
         return wrk.format("POST", "/v3/kv/range", nil, '{"key":"' .. base64(key) .. '"}')
      end,
   },
}

function init(arguments)
   local store, operation, keys = arguments[1], arguments[2], tonumber(arguments[3])
   local ports = #arguments - 3
   local port = arguments[4 + index % ports]
   wrk.thread.addr = wrk.lookup("127.0.0.1", port)[1]
   wrk.headers["Host"] = "127.0.0.1:" .. port
   fill, total = operation == "fill", keys
   requests = {}
   local build = builders[store][fill and "put" or operation]
   local first, step = 1, 1
   if fill then first, step = index + 1, tonumber(os.getenv("THREADS")) end
   for key = first, keys, step do
      table.insert(requests, build("bench/" .. key))
   end
   count, answered = 0, 0
   math.randomseed(index + 1)
   if fill then
      response = function()
         answered = answered + 1
         if answered >= #requests then wrk.thread:stop() end
      end
   end
end

function request()
   if fill then
      count = count + 1
      return requests[(count - 1) % #requests + 1]
   end
   return requests[math.random(#requests)]
end

-- requests seconds p50_us p99_us errors
function done(summary, latency)
   local e = summary.errors
   local failed = e.status + e.connect + e.read + e.write + e.timeout
   io.write(string.format("RESULT %d %.3f %d %d %d\n", summary.requests, summary.duration / 1e6,
      latency:percentile(50), latency:percentile(99), failed))
end
